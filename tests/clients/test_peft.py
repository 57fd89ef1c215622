"""LoRA adapters of peft after fused_dropout.replace, whose A drops its own input.

Each test does the same with a model as peft makes it; in evaluation the numbers are the same to the
bit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from fused_dropout import nn as ours
from fused_dropout import replace, restore
from fused_dropout._models.replace.peft_layers import LoraDropout, LoraDropoutLinear

P = 0.3
TOKENS = torch.arange(48).reshape(4, 12) % 50


def base() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.BertModel(config)


def config_of(**settings: Any) -> LoraConfig:
    targets = ["query", "key", "value"]
    defaults = {"r": 4, "lora_dropout": P, "target_modules": targets, "init_lora_weights": False}
    return LoraConfig(**{**defaults, **settings})


def adapted(**settings: Any) -> Any:
    model = get_peft_model(base(), config_of(**settings))
    return model.eval()


def layers_of(model: nn.Module) -> list[Any]:
    return [layer for layer in model.modules() if hasattr(layer, "lora_A")]


def joined(model: nn.Module, name: str = "default") -> list[bool]:
    found = []
    for layer in layers_of(model):
        pair = layer.lora_dropout[name], layer.lora_A[name]
        found.append([type(each) for each in pair] == [LoraDropout, LoraDropoutLinear])
    return found


def output(model: nn.Module, **kwargs: Any) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(TOKENS, **kwargs).last_hidden_state
    return result


def merged(model: Any) -> Any:
    model.merge_adapter(safe_merge=True)


def unmerged(model: Any) -> Any:
    model.merge_adapter()
    model.unmerge_adapter()


def unloaded(model: Any) -> Any:
    return model.merge_and_unload()


def with_another(model: Any) -> Any:
    torch.manual_seed(5)
    model.add_adapter("other", config_of(r=2, lora_dropout=0.1))
    model.set_adapter("other")


def deleted(model: Any) -> Any:
    with_another(model)
    model.delete_adapter("default")
    assert all(list(layer.lora_dropout) == ["other"] for layer in layers_of(model))


def weighted(model: Any) -> Any:
    torch.manual_seed(5)
    model.add_adapter("other", config_of())
    model.add_weighted_adapter(["default", "other"], [0.7, 0.3], "both")
    model.set_adapter("both")


def moved(model: Any) -> Any:
    return model.to(torch.bfloat16)


CHANGES = [merged, unmerged, unloaded, with_another, deleted, weighted, moved]


@pytest.mark.parametrize("change", CHANGES)
def test_what_peft_does_with_adapters(change: Callable[[Any], Any]) -> None:
    """Done with the model as it was, and with the converted one: the same outputs and names."""
    models = adapted(), replace(adapted())
    assert joined(models[1]) == [True] * 6
    assert torch.equal(output(models[1]), output(models[0]))
    first, second = ((change(model) or model).eval() for model in models)
    assert torch.equal(output(second), output(first))
    assert list(second.state_dict()) == list(first.state_dict())
    trainable = [name for name, each in first.named_parameters() if each.requires_grad]
    assert trainable == [name for name, each in second.named_parameters() if each.requires_grad]
    restore(second)
    assert torch.equal(output(second), output(first))
    assert not [each for each in second.modules() if isinstance(each, (ours.Dropout, LoraDropout))]


def test_adapters_of_a_batch_and_none() -> None:
    models = adapted(), replace(adapted())
    for model in models:
        with_another(model)
        model.eval()
    replace(models[1])
    assert joined(models[1], "other") == [True] * 6
    names = ["default", "other", "__base__", "other"]
    first, second = (output(model, adapter_names=names) for model in models)
    assert torch.equal(first, second) and not torch.equal(first, output(models[0]))
    with models[0].disable_adapter(), models[1].disable_adapter():
        assert torch.equal(output(models[0]), output(models[1]))


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    """In both directions: a converted model's adapters into one that is not, and back."""
    plain, converted = adapted(), replace(adapted())
    for first, second, folder in ((plain, converted, "a"), (converted, plain, "b")):
        first.save_pretrained(tmp_path / folder)
        second.load_adapter(tmp_path / folder, "loaded")
        second.set_adapter("loaded")
        assert torch.equal(output(first), output(second))
        fresh = PeftModel.from_pretrained(base(), tmp_path / folder).eval()
        assert torch.equal(output(fresh), output(second))
        second.set_adapter("default")
    again = copy.deepcopy(converted)
    assert joined(again) == [True] * 6
    again.load_state_dict(plain.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_training(dtype: torch.dtype, autocast: bool) -> None:
    """Backward keeps x for the adapters of q, k and v, and no dropped copy or mask of any.

    Adapters are float32, as peft makes them for a bfloat16 model too. It gives each a cast copy of
    x there, and that is what is kept.
    """
    model = adapted().to(dtype).train()
    attention = model.base_model.model.encoder.layer[0].attention.self
    layers: list[Any] = [attention.query, attention.key, attention.value]
    for layer in layers:
        layer.lora_A.float()
        layer.lora_B.float()
    x = torch.randn(64, 32, dtype=dtype, requires_grad=True)

    def kept_by_a_step() -> dict[int, Tensor]:
        kept: dict[int, Tensor] = {}

        def note(tensor: Tensor) -> Tensor:
            if tensor.numel() >= x.numel():
                kept[tensor.data_ptr()] = tensor
            return tensor

        model.zero_grad()
        x.grad = None
        with (
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, autocast),
        ):
            outputs = [layer(x) for layer in layers]
        assert all(each.dtype == (torch.bfloat16 if autocast else dtype) for each in outputs)
        sum(each.float().sum() for each in outputs).backward()
        return kept

    assert len(kept_by_a_step()) >= 6
    trained = {name for name, each in model.named_parameters() if each.grad is not None}
    replace(model)
    assert joined(model) == [True] * 6
    kept = kept_by_a_step()
    assert kept.keys() == {x.data_ptr()} if dtype is torch.float32 else len(kept) == 3
    assert trained == {n for n, each in model.named_parameters() if each.grad is not None}
    assert x.grad is not None and torch.isfinite(x.grad).all()
    assert len(trained) == 6


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"lora_dropout": 0.0}])
def test_variants_keep_their_dropout_layer(settings: dict[str, Any]) -> None:
    model = adapted(**settings)
    expected = output(model)
    replace(model)
    assert joined(model) == [False] * 6
    kind = ours.Dropout if "use_dora" in settings else nn.Identity
    assert all(type(layer.lora_dropout["default"]) is kind for layer in layers_of(model))
    assert torch.equal(output(model), expected)
    model.train()
    output(model)


def test_embeddings_and_convolutions_keep_their_dropout_layer() -> None:
    model = nn.Sequential(nn.Embedding(50, 8), nn.Conv1d(12, 4, 3), nn.Linear(6, 3))
    adapters = get_peft_model(model, config_of(target_modules=["0", "1", "2"], r=2)).train()
    replace(adapters)
    dropouts = [type(layer.lora_dropout["default"]) for layer in layers_of(adapters)]
    assert dropouts == [ours.Dropout, ours.Dropout, LoraDropout]
    adapters(TOKENS).sum().backward()


def test_what_sets_every_dropout_layer_reaches_it() -> None:
    """As trl does before it compares models: p = 0 in all that is a torch.nn.Dropout."""
    model = replace(adapted()).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0
    assert torch.equal(output(model), output(model.eval()))
