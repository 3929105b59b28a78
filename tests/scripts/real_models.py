"""Whether noise goes into models of timm, torchvision, transformers and PEFT, and trains, resumes, folds and predicts.

    pip install timm torchvision transformers peft     220 MB beside torch, more than the suite installs
    python tests/scripts/real_models.py

Models are made from configurations, small and untrained: nothing is downloaded. A line says of each model how many
modules have noise, and raises if a step resumed from a checkpoint is another one, if a folded model computes another
thing or has other names, or if a module with noise was never called; `docs/guides/pytorch.md` has the outcome.
"""

import contextlib
import copy
import io
import tempfile
import warnings

import torch

import pernodedrop.torch as pndt
from pernodedrop.torch.noisy import Noisy

VISION_OPS = torch.library.Library("torchvision", "DEF")
with contextlib.suppress(RuntimeError):  # torchvision as it comes from PyPI is built for CUDA, and has none on a CPU
    for name in ("nms", "qnms"):
        VISION_OPS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import peft  # noqa: E402
import timm  # noqa: E402
import torchvision  # noqa: E402
import transformers  # noqa: E402

STEPS, SAMPLES = 10, 3
IMAGES, LARGER_IMAGES = torch.randn(4, 3, 32, 32), torch.randn(4, 3, 64, 64)
IDS = {"input_ids": torch.randint(50, (4, 6))}
TOKENS = {"bos_token_id": 0, "eos_token_id": 0}
LORA = {"r": 4, "lora_dropout": 0.1}


def bert():
    """A classifier of two layers."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=50, max_position_embeddings=16, num_labels=3, **sizes)
    return transformers.BertForSequenceClassification(config)


def gpt():
    """A language model of two layers, whose head is tied to its embedding."""
    config = transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=16, **TOKENS)
    return transformers.GPT2LMHeadModel(config)


def lora(make, target):
    """What makes a model with LoRA factors beside some of its modules."""
    return lambda: peft.get_peft_model(make(), peft.LoraConfig(target_modules=target, **LORA))


def vision_transformer():
    """Two layers, of torch.nn.MultiheadAttention."""
    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
    return torchvision.models.VisionTransformer(num_classes=10, **sizes)


def resnet():
    """The smallest ResNet of torchvision."""
    return torchvision.models.resnet18(weights=None, num_classes=10)


def of_timm(name, **sizes):
    """What makes a model of timm."""
    return lambda: timm.create_model(name, num_classes=10, **sizes)


VIT = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2}
SWIN = {"img_size": 64, "window_size": 4, "depths": (1, 1, 1, 1), "embed_dim": 16, "num_heads": (1, 1, 2, 2)}
MODELS = {
    "transformers, BERT": (bert, IDS, "all-linear", {"exclude": "classifier"}),
    "transformers, GPT-2": (gpt, IDS, "all-linear", {}),
    "transformers, GPT-2, DropConnect": (gpt, IDS, "attn", {"regularizer": "drop_connect"}),
    "PEFT on BERT, base": (lora(bert, ["query", "value"]), IDS, "base_layer", {}),
    "PEFT on BERT, factors": (lora(bert, ["query", "value"]), IDS, "lora_[AB]", {}),
    "PEFT on GPT-2, base": (lora(gpt, ["c_attn"]), IDS, "base_layer", {}),
    "PEFT on GPT-2, factors": (lora(gpt, ["c_attn"]), IDS, "lora_[AB]", {}),
    "torchvision, ResNet-18": (resnet, IMAGES, [r"layer4\.1", "fc"], {}),
    "torchvision, ViT": (vision_transformer, IMAGES, "all-linear", {"exclude": "out_proj"}),
    "torchvision, ViT, attention": (vision_transformer, IMAGES, "all-attention", {"regularizer": "drop_connect"}),
    "timm, ViT": (of_timm("vit_tiny_patch16_224", **VIT), IMAGES, "all-linear", {"exclude": "head"}),
    "timm, BEiT": (of_timm("beit_base_patch16_224", **VIT), IMAGES, "all-linear", {"exclude": "qkv"}),
    "timm, Swin V2": (of_timm("swinv2_tiny_window8_256", **SWIN), LARGER_IMAGES, "all-linear", {"exclude": "qkv"}),
    "timm, EfficientNet": (of_timm("efficientnet_b0"), IMAGES, "all-conv", {"regularizer": "drop_connect"}),
}
REFUSED = {
    "torchvision, ViT": (vision_transformer, "all-linear", "exclude='out_proj'"),
    "timm, BEiT": (of_timm("beit_base_patch16_224", **VIT), "all-linear", "Attention reads the weight"),
    "timm, EfficientNet of TensorFlow": (of_timm("tf_efficientnet_b0"), "all-conv", "a `forward` of its own"),
}


def call(model, x):
    """The logits of a model."""
    y = model(**x) if isinstance(x, dict) else model(x)
    return getattr(y, "logits", y)


def made(make, rule, arguments, rate, seed):
    """A noisy model, always with the same weights, and its optimizer."""
    torch.manual_seed(0)
    model = pndt.apply(make(), rule, rate=rate, seed=seed, **arguments).train()
    return model, torch.optim.Adam([one for one in model.parameters() if one.requires_grad], 1e-3)


def step(model, optimizer, x, number):
    """The loss of a training step; the model's own dropout is that of its number."""
    torch.manual_seed(number)
    optimizer.zero_grad()
    loss = ((call(model, x) - 1) ** 2).mean()
    loss.backward()
    optimizer.step()
    return loss.item()


def check(make, x, rule, arguments):
    """How many modules of a model have noise, or an error."""
    model, optimizer = made(make, rule, arguments, 0.2, 1)
    for number in range(STEPS):
        step(model, optimizer, x, number)
    noisy = {name: one for name, one in model.named_modules() if isinstance(one, Noisy)}
    assert not [name for name, one in noisy.items() if one.updates != STEPS], "not called"
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    again, its_optimizer = made(make, rule, arguments, 0.5, 2)
    for one, state in zip((again, its_optimizer), torch.load(io.BytesIO(file.getvalue())), strict=True):
        one.load_state_dict(state)
    assert step(model, optimizer, x, STEPS) == step(again, its_optimizer, x, STEPS), "not resumed"
    folded = pndt.fold(model.eval())
    torch.testing.assert_close(call(folded, x), call(model, x))
    assert folded.state_dict().keys() == make().state_dict().keys(), "other names"
    found = pndt.uncertainty.predict(model, x, SAMPLES, seed=1, probabilities=False)
    assert found.variance.any(), "no variance"
    return len(noisy)


def trained(folder, steps, resume=None):
    """A GPT-2 after some steps of transformers' own loop, which saves a checkpoint at each second one."""
    model, _ = made(gpt, "all-linear", {}, 0.2, 1)
    settings = {"save_steps": 2, "per_device_train_batch_size": 2, "lr_scheduler_type": "constant", "report_to": []}
    settings = transformers.TrainingArguments(folder, max_steps=steps, use_cpu=True, disable_tqdm=True, **settings)
    rows = [{"input_ids": row, "labels": row} for row in IDS["input_ids"]]
    transformers.Trainer(model, settings, train_dataset=rows).train(resume_from_checkpoint=resume)
    return model


def check_trainer():
    """Raise unless transformers' own loop resumes a noisy model, and its files are those of the plain model."""
    with tempfile.TemporaryDirectory() as folder:
        whole = trained(folder, 4)
        resumed = trained(folder, 4, f"{folder}/checkpoint-2").state_dict()
        assert all(torch.equal(one, resumed[name]) for name, one in whole.state_dict().items())
        whole.eval().save_pretrained(folder)
        plain = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
        assert torch.equal(call(plain, IDS), call(whole, IDS))


def message_of(make, rule):
    """What `apply` says of a model: an error or a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            pndt.apply(make(), rule, rate=0.2)
        except (ValueError, UserWarning) as error:
            return str(error)
    return ""


def main():
    """Try all, and print a line for each."""
    for name, model in MODELS.items():
        print(f"{name}: noise in {check(*copy.copy(model))} modules")
    check_trainer()
    print("transformers' Trainer: resumed and saved")
    for name, (make, rule, words) in REFUSED.items():
        assert words in message_of(make, rule), name
        print(f"{name}: {words}")


if __name__ == "__main__":
    main()
