"""The description of the package on PyPI: README.md, whose relative links lead nowhere from there."""

import pathlib
import re
import runpy
import tomllib

HERE = pathlib.Path(__file__).parent


def description(text, address=None, tag="HEAD"):
    """README.md's text with links and pictures at the project's address; without one, without them."""
    link, picture = r"\[([^\]]+)\]\((?!https?:)([^)]+)\)", r'\b(src|srcset)="(?!https?:)([^"]+)"'
    if address is None:
        text = re.sub(r"<picture>.*?</picture>\n*|<img [^>]*>\n*", "", text, flags=re.DOTALL)
        return re.sub(link, r"\1", text)
    text = re.sub(picture, rf'\1="{address}/raw/{tag}/\2"', text)
    return re.sub(link, rf"[\1]({address}/blob/{tag}/\2)", text)


if __name__ == "__main__":
    import setuptools

    project = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    address = project.get("urls", {}).get("Source")
    version = runpy.run_path(str(HERE / "pernodedrop" / "_version.py"))["__version__"]
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    setuptools.setup(
        long_description=description(readme, address, f"v{version}"),
        long_description_content_type="text/markdown",
    )
