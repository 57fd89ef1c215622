"""Models of other packages, small enough to train for some steps, with inputs and a loss."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
import torchvision
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import MBConvConfig

CLASSES, TOKENS = 4, 50


class Client(NamedTuple):
    """A model to convert.

    Attributes:
        model: as its package makes it, in training mode.
        inputs: its keyword arguments, without the targets.
        loss: of its output.
        replaced: how many layers are to be replaced.
        left: the classes of the modules that are to be left, because they drop by functions.
        joined: how many linear layers are to be replaced with them, those of LoRA adapters.
    """

    model: nn.Module
    inputs: dict[str, Tensor]
    loss: Callable[[Any], Tensor]
    replaced: int
    left: set[str]
    joined: int = 0


def _images(key: str, model: nn.Module, replaced: int, *left: str, side: int = 32) -> Client:
    images = {key: torch.randn(8, 3, side, side)}
    targets = torch.arange(8) % CLASSES
    return Client(model, images, lambda y: F.cross_entropy(y, targets), replaced, set(left))


def _texts(model: nn.Module, loss: Callable[[Any], Tensor], replaced: int, *left: str) -> Client:
    tokens = torch.randint(TOKENS, (6, 10))
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return Client(model, inputs, loss, replaced, set(left))


def timm_vit() -> Client:
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, depth=2, num_classes=CLASSES, drop_rate=0.1,
        pos_drop_rate=0.2, proj_drop_rate=0.15, attn_drop_rate=0.25, drop_path_rate=0.3,
    )  # fmt: skip
    # In each block: attention's two, two of the MLP, and DropPath's two, which the first lacks.
    return _images("x", model, 2 + 2 * 4 + 2, "Attention", side=64)


def timm_efficientnet() -> Client:
    model = timm.create_model(
        "efficientnet_b0", num_classes=CLASSES, drop_rate=0.2, drop_path_rate=0.3
    )
    return _images("x", model, 15, "EfficientNet")


def small_timm_efficientnet() -> Client:
    """The same layers, fewer and narrower: a step takes a tenth of the time."""
    model = timm.create_model(
        "test_efficientnet", num_classes=CLASSES, drop_rate=0.2, drop_path_rate=0.3
    )
    return _images("x", model, 4, "EfficientNet")


def timm_resnet_with_blocks() -> Client:
    model = timm.create_model("resnet18", num_classes=CLASSES, drop_block_rate=0.2)
    return _images("x", model, 4, side=64)


def small_timm_resnet_with_blocks() -> Client:
    model = timm.create_model("test_resnet", num_classes=CLASSES, drop_block_rate=0.2)
    return _images("x", model, 2, side=64)


def torchvision_efficientnet() -> Client:
    model = torchvision.models.efficientnet_b0(
        num_classes=CLASSES, dropout=0.3, stochastic_depth_prob=0.3
    )
    return _images("x", model, 17)


def small_torchvision_efficientnet() -> Client:
    block = partial(MBConvConfig, width_mult=0.5, depth_mult=0.5)
    blocks = [block(1, 3, 1, 32, 16, 2), block(4, 3, 2, 16, 24, 4), block(4, 5, 2, 24, 40, 4)]
    model = torchvision.models.EfficientNet(
        blocks, dropout=0.3, stochastic_depth_prob=0.3, num_classes=CLASSES
    )
    return _images("x", model, 6)


def torchvision_convnext() -> Client:
    blocks = [CNBlockConfig(16, 32, 2), CNBlockConfig(32, None, 2)]
    model = torchvision.models.ConvNeXt(blocks, stochastic_depth_prob=0.4, num_classes=CLASSES)
    return _images("x", model, 4)


def bert() -> Client:
    config = transformers.BertConfig(
        vocab_size=TOKENS, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.15,
        num_labels=CLASSES,
    )  # fmt: skip
    targets = torch.arange(6) % CLASSES
    model = transformers.BertForSequenceClassification(config)
    loss = lambda output: F.cross_entropy(output.logits, targets)  # noqa: E731
    return _texts(model, loss, 2 + 2 * 3, "BertSelfAttention")


def _gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=TOKENS, n_embd=32, n_layer=2, n_head=2, n_positions=16, resid_pdrop=0.2,
        embd_pdrop=0.1, attn_pdrop=0.15, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def _next_token_loss(output: Any) -> Tensor:
    targets = torch.arange(6 * 9) * 7 % TOKENS
    return F.cross_entropy(output.logits[:, :-1].flatten(0, 1), targets)


def gpt2() -> Client:
    return _texts(_gpt2(), _next_token_loss, 1 + 2 * 3, "GPT2Attention")


def gpt2_with_lora() -> Client:
    adapters = LoraConfig(r=4, lora_dropout=0.3, target_modules=["c_attn"], fan_in_fan_out=True)
    model = get_peft_model(_gpt2(), adapters)
    return _texts(model, _next_token_loss, 1 + 2 * 4, "GPT2Attention")._replace(joined=2)


def torch_transformer() -> Client:
    model = nn.Transformer(32, 2, 1, 1, 64, dropout=0.2, batch_first=True)
    inputs = {"src": torch.randn(6, 5, 32), "tgt": torch.randn(6, 4, 32)}
    return Client(model, inputs, lambda y: (y - 1).square().mean(), 7, {"MultiheadAttention"})


class LanguageModel(nn.Module):
    """Dropout around an LSTM that drops between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, 32)
        self.drop = nn.Dropout(0.3)
        self.rnn = nn.LSTM(32, 32, 2, dropout=0.2, batch_first=True)
        self.head = nn.Linear(32, TOKENS)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.rnn(self.drop(self.embed(input_ids)))[0]
        logits: Tensor = self.head(self.drop(hidden))
        return logits


def language_model() -> Client:
    targets = torch.arange(60) * 7 % TOKENS
    loss = lambda y: F.cross_entropy(y.flatten(0, 1), targets)  # noqa: E731
    return _texts(LanguageModel(), loss, 1, "LSTM")


def made(factory: Callable[[], Client], seed: int = 0) -> Client:
    """The same model and inputs each time."""
    torch.manual_seed(seed)
    return factory()


FACTORIES = {
    each.__name__: partial(made, each)
    for each in (
        timm_vit,
        timm_efficientnet,
        timm_resnet_with_blocks,
        torchvision_efficientnet,
        torchvision_convnext,
        bert,
        gpt2,
        gpt2_with_lora,
        torch_transformer,
        language_model,
    )
}

#: In place of those whose steps take long, smaller ones of the same classes.
TRAINED = FACTORIES | {
    each.__name__.removeprefix("small_"): partial(made, each)
    for each in (
        small_timm_efficientnet,
        small_timm_resnet_with_blocks,
        small_torchvision_efficientnet,
    )
}
