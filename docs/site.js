// The versions of the site that lie beside this one, once docs/versions.py has listed them.
const root = document.documentElement.dataset.content_root;
fetch(`${root}../versions.json`).then((found) => (found.ok ? found.json() : [])).then((names) => {
  if (names.length < 2) return;
  const here = new URL(root, location).pathname.split("/").at(-2);
  const choice = document.createElement("select");
  choice.className = "versions";
  choice.ariaLabel = "version of the site";
  for (const name of names) choice.add(new Option(name, name, name === here, name === here));
  choice.onchange = () => (location = new URL(`${root}../${choice.value}/index.html`, location));
  document.querySelector(".sidebar-brand").after(choice);
}).catch(() => {}); // opened as a file, or served alone
