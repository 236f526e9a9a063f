"""Networks of timm and transformers, built small at random initialisation, and the axes that should move in them.

As in networks.py, the expected axes come from the definition of the architecture alone. Both packages are an extra:
`pip install 'repairlab[zoo]'`.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Expected:
    """`copies` axes of this size with slots in dimension `dim` of `key`."""

    what: str
    key: str
    size: int
    copies: int = 1
    dim: int = 0


Walker = Callable[[Any], Iterator[Expected]]


@dataclass(frozen=True)
class Family:
    """Networks of one architecture: the axes that should move, in words and as a walker."""

    rule: str
    walk: Walker


def rows(network: nn.Module, pattern: str, what: str, dim: int = 0) -> Iterator[Expected]:
    """Yield one axis at each entry whose whole name matches."""
    for key, tensor in network.state_dict().items():
        if re.fullmatch(pattern, key):
            yield Expected(what, key, tensor.shape[dim], 1, dim)


def attention(
    query: str,
    key: str,
    value: str,
    n_heads: int,
    size: int,
    *,
    groups: int | None = None,
    rotary: int = 0,
    heads: bool = True,
    dim: int = 0,
) -> Iterator[Expected]:
    """Yield the axes of attention heads of `size` channels.

    `groups` of heads share keys and values. The first `rotary` channels of queries and keys are rotated by angles of
    their own, and stay.
    """
    n_groups = groups or n_heads
    if heads:
        yield Expected("heads" if n_groups == n_heads else "groups of heads", key, n_groups, 1, dim)
        if n_heads > n_groups > 0:
            yield Expected("heads of a group", query, n_heads // n_groups, n_groups, dim)
    if size > rotary:
        yield Expected("query-key channels", key, size - rotary, n_groups, dim)
    yield Expected("value channels", value, size, n_groups, dim)


def _decoder(network: Any) -> Iterator[Expected]:
    """Yield the axes of Llama and its successors: all query-key channels are rotary."""
    config = network.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    yield Expected("stream", "model.embed_tokens.weight", config.hidden_size, 1, 1)
    for i in range(config.num_hidden_layers):
        name = f"model.layers.{i}"
        yield Expected("hidden", f"{name}.mlp.gate_proj.weight", config.intermediate_size)
        query, key, value = (f"{name}.self_attn.{part}_proj.weight" for part in "qkv")
        groups = config.num_key_value_heads
        yield from attention(query, key, value, config.num_attention_heads, size, groups=groups, rotary=size)


def _gpt2(network: Any) -> Iterator[Expected]:
    config = network.config
    yield Expected("stream", "transformer.wpe.weight", config.n_embd, 1, 1)
    for i in range(config.n_layer):
        name = f"transformer.h.{i}"
        yield from rows(network, rf"{name}.mlp.c_fc.weight", "hidden", 1)
        fused = f"{name}.attn.c_attn.weight"
        yield from attention(fused, fused, fused, config.n_head, config.n_embd // config.n_head, dim=1)


def _neox(network: Any) -> Iterator[Expected]:
    config = network.config
    size = config.hidden_size // config.num_attention_heads
    yield Expected("stream", "gpt_neox.embed_in.weight", config.hidden_size, 1, 1)
    yield from rows(network, r".*\.mlp\.dense_h_to_4h\.weight", "hidden")
    for i in range(config.num_hidden_layers):
        fused = f"gpt_neox.layers.{i}.attention.query_key_value.weight"
        yield from attention(fused, fused, fused, config.num_attention_heads, size, rotary=size // 4)


def _opt(network: Any) -> Iterator[Expected]:
    config = network.config
    yield Expected("stream", "model.decoder.embed_tokens.weight", config.hidden_size, 1, 1)
    yield from rows(network, r".*\.fc1\.weight", "hidden")
    for i in range(config.num_hidden_layers):
        query, key, value = (f"model.decoder.layers.{i}.self_attn.{part}_proj.weight" for part in "qkv")
        size = config.hidden_size // config.num_attention_heads
        yield from attention(query, key, value, config.num_attention_heads, size)


def _bloom(network: Any) -> Iterator[Expected]:
    config = network.config
    yield Expected("stream", "transformer.word_embeddings.weight", config.hidden_size, 1, 1)
    yield from rows(network, r".*\.mlp\.dense_h_to_4h\.weight", "hidden")
    for i in range(config.n_layer):
        fused = f"transformer.h.{i}.self_attention.query_key_value.weight"
        yield from attention(fused, fused, fused, config.n_head, config.hidden_size // config.n_head, heads=False)


def _phi(network: Any) -> Iterator[Expected]:
    config = network.config
    size = config.hidden_size // config.num_attention_heads
    yield Expected("stream", "model.embed_tokens.weight", config.hidden_size, 1, 1)
    yield from rows(network, r".*\.mlp\.fc1\.weight", "hidden")
    for i in range(config.num_hidden_layers):
        query, key, value = (f"model.layers.{i}.self_attn.{part}_proj.weight" for part in "qkv")
        yield from attention(query, key, value, config.num_attention_heads, size, rotary=size // 2)


def _encoder(network: Any) -> Iterator[Expected]:
    """Yield the axes of BERT and its variants, under any names: separate queries, keys and values, all with biases."""
    config = network.config
    stream = r".*embeddings\.(position_embeddings\.weight|cls_token)"
    for key, tensor in network.state_dict().items():
        if re.fullmatch(stream, key):
            yield Expected("stream", key, tensor.shape[-1], 1, tensor.ndim - 1)
    hidden = r".*(intermediate\.dense|ffn\.lin1|\.ffn|\.mlp\.fc1)\.weight"
    yield from rows(network, hidden, "hidden")
    yield from rows(network, r".*(embedding_hidden_mapping_in|embeddings_project)\.weight", "stream")
    yield from rows(network, r"(.*\.pooler(\.dense)?|classifier\.dense|pre_classifier)\.weight", "pooled")
    for key, tensor in network.state_dict().items():
        if re.fullmatch(r".*(query|\.q_lin|\.q_proj)\.weight", key):
            value = re.sub(r"query\.weight$", "value.weight", key).replace(".q_", ".v_")
            n_heads = config.num_attention_heads
            yield from attention(key, key, value, n_heads, tensor.shape[0] // n_heads)


def _t5(network: Any) -> Iterator[Expected]:
    config = network.config
    # Its stream is its output.
    yield from rows(network, r".*\.DenseReluDense\.wi\.weight", "hidden")
    for i in range(config.num_layers):
        query, key, value = (f"encoder.block.{i}.layer.0.SelfAttention.{part}.weight" for part in "qkv")
        # All blocks add the position bias of the first.
        yield from attention(query, key, value, config.num_heads, config.d_kv, heads=i == 0)


def _mamba(network: Any) -> Iterator[Expected]:
    config = network.config
    yield Expected("stream", "backbone.embeddings.weight", config.hidden_size, 1, 1)
    yield from rows(network, r".*\.mixer\.conv1d\.weight", "inner")
    yield from rows(network, r".*\.mixer\.A_log", "states", 1)
    yield from rows(network, r".*\.mixer\.dt_proj\.weight", "step", 1)


def _grouped(network: nn.Module, before: str, key: str, groups: int) -> Iterator[Expected]:
    state = network.state_dict()
    n_in, n_out = state[before].shape[0], state[key].shape[0]
    if groups > 1:
        yield Expected("groups", key, groups)
        yield Expected("inputs of a group", before, n_in // groups, groups)
        yield Expected("outputs of a group", key, n_out // groups, groups)
    else:
        yield Expected("inner", before, n_in)
        yield Expected("inner", key, n_out)


def _resnet(network: Any) -> Iterator[Expected]:
    stems = [key for key in network.state_dict() if re.fullmatch(r"conv1(\.\d+)?\.weight", key)]
    stems = [key for key in stems if network.state_dict()[key].ndim == 4]
    if network.layer1[0].downsample is None:
        stems = stems[:-1]
    for key in stems:
        yield Expected("stem", key, network.state_dict()[key].shape[0])
    for stage in range(1, 5):
        for i, block in enumerate(getattr(network, f"layer{stage}")):
            name = f"layer{stage}.{i}"
            if hasattr(block, "conv3"):
                yield from _grouped(network, f"{name}.conv1.weight", f"{name}.conv2.weight", block.conv2.groups)
            else:
                yield from rows(network, rf"{name}\.conv1\.weight", "inner")
        last = "conv3" if hasattr(network.layer1[0], "conv3") else "conv2"
        # Efficient channel attention convolves over the order of channels.
        if not hasattr(getattr(network.layer1[0], "se", None), "conv"):
            yield from rows(network, rf"layer{stage}\.0\.{last}\.weight", "stream")
    yield from rows(network, r".*\.se\.fc1\.weight", "squeeze")


def _res2net(network: Any) -> Iterator[Expected]:
    yield from rows(network, r"conv1\.weight", "stem")
    yield from rows(network, r"layer\d\.0\.conv3\.weight", "stream")
    for name, block in network.named_modules():
        if hasattr(block, "convs"):
            scale = len(block.convs) + 1
            yield Expected("pieces", f"{name}.conv1.weight", block.conv1.out_channels // scale, scale)
            # But in the first block of a stage each piece is added to what comes of the one before.
            for i in range(len(block.convs)) if block.is_first else [len(block.convs) - 1]:
                yield from rows(network, rf"{name}\.convs\.{i}\.weight", "outputs of a piece")


def _regnet(network: Any) -> Iterator[Expected]:
    yield from rows(network, r"stem\.conv\.weight", "stem")
    yield from rows(network, r"s\d\.b1\.downsample\.conv\.weight", "stream")
    yield from rows(network, r".*\.se\.fc1\.weight", "squeeze")
    for name, block in network.named_modules():
        if hasattr(block, "conv3"):
            before, key = f"{name}.conv1.conv.weight", f"{name}.conv2.conv.weight"
            yield from _grouped(network, before, key, block.conv2.conv.groups)


def _csp(network: Any) -> Iterator[Expected]:
    own = r"(stem\.conv1|.*\.conv_down|.*\.conv_transition_b|.*\.conv_transition|.*\.blocks\.\d+\.conv[12])"
    yield from rows(network, own + r"\.conv\.weight", "channels")
    for key, tensor in network.state_dict().items():
        if key.endswith("conv_exp.conv.weight"):
            yield Expected("halves", key, tensor.shape[0] // 2, 2)


def _dla(network: Any) -> Iterator[Expected]:
    yield from rows(network, r"(base_layer|level0|level1)\.0\.weight", "channels")
    yield from rows(network, r".*\.tree\d\.conv1\.weight", "inner")
    yield from rows(network, r".*\.project\.0\.weight", "stream")
    # The root between two trees is the stream of the second.
    yield from rows(network, r".*\.root\.conv\.weight", "root")


def _repvgg(network: Any) -> Iterator[Expected]:
    yield from rows(network, r"stem\.conv_kxk\.conv\.weight", "stem")
    yield from rows(network, r"stages\.\d\.0\.conv_kxk\.conv\.weight", "stream")


def _ghost(network: Any) -> Iterator[Expected]:
    yield from rows(network, r".*\.ghost1\.primary_conv\.0\.weight", "inner")
    yield from rows(network, r".*\.se\.conv_reduce\.weight", "squeeze")
    yield from rows(network, r"(conv_head|blocks\.9\.0\.conv)\.weight", "outer")
    # A channel and what is cheaply made of it move together, from one shortcut without convolutions to the next.
    for name, block in network.named_modules():
        if hasattr(block, "ghost2") and (len(block.shortcut) > 0 or name == "blocks.0.0"):
            yield from rows(network, rf"{name}\.ghost2\.primary_conv\.0\.weight", "stream")


def _mobilenetv4(network: Any) -> Iterator[Expected]:
    yield from rows(network, r"(conv_stem|conv_head|blocks\.\d\.\d\.conv)\.weight", "channels")
    yield from rows(network, r".*\.pw_exp\.conv\.weight", "expanded")
    yield from rows(network, r"blocks\.\d\.0\.pw_proj\.conv\.weight", "stream")


def _efficientvit(network: Any) -> Iterator[Expected]:
    yield from rows(network, r"(stem\.in_conv|head\.in_conv)\.conv\.weight", "channels")
    yield from rows(network, r"head\.classifier\.0\.weight", "hidden")
    yield from rows(network, r".*\.inverted_conv\.conv\.weight", "expanded")
    yield from rows(network, r"stages\.\d\.blocks\.0\.main\.point_conv\.conv\.weight", "stream")
    for name, module in network.named_modules():
        if hasattr(module, "aggreg"):
            size = module.dim
            n_heads = module.qkv.conv.out_channels // (3 * size)
            key, wide = f"{name}.qkv.conv.weight", f"{name}.aggreg.0.1.weight"
            yield from attention(key, key, key, n_heads, size)
            yield from attention(wide, wide, wide, n_heads, size, heads=False)


def _convnext(network: Any) -> Iterator[Expected]:
    yield from rows(network, r"(stem\.0|stages\.\d\.downsample\.1)\.weight", "stream")
    yield from rows(network, r".*\.mlp\.fc1\.weight", "hidden")


def _fused(network: Any, pattern: str) -> Iterator[Expected]:
    for name, module in network.named_modules():
        if re.fullmatch(pattern, name):
            key = f"{name}.qkv.weight"
            yield from attention(key, key, key, module.num_heads, module.qkv.out_features // 3 // module.num_heads)


def _vit(network: Any) -> Iterator[Expected]:
    yield from rows(network, r"patch_embed\.proj\.weight", "stream")
    yield from rows(network, r".*\.mlp\.fc1\.weight", "hidden")
    yield from _fused(network, r"blocks\.\d+\.attn")


def _swin(network: Any) -> Iterator[Expected]:
    yield from rows(network, r"(patch_embed\.proj|layers\.\d\.downsample\.reduction)\.weight", "stream")
    yield from rows(network, r".*\.mlp\.fc1\.weight", "hidden")
    yield from _fused(network, r"layers\.\d\.blocks\.\d\.attn")


def _xcit(network: Any) -> Iterator[Expected]:
    yield from rows(network, r"patch_embed\.proj\.\d\.0\.weight", "patches and stream")
    yield from rows(network, r".*\.mlp\.fc1\.weight", "hidden")
    # A query channel leads to an output channel; a key channel to a value channel.
    yield from _fused(network, r"blocks\.\d+\.attn")
    for name, module in network.named_modules():
        if re.fullmatch(r"cls_attn_blocks\.\d\.attn", name):
            query, key, value = (f"{name}.{part}.weight" for part in "qkv")
            yield from attention(query, key, value, module.num_heads, module.q.out_features // module.num_heads)


def _levit(network: Any) -> Iterator[Expected]:
    yield from rows(network, r"(stem\.conv\d|.*\.mlp\.ln1)\.linear\.weight", "hidden and stream")
    yield from rows(network, r".*\.attn_downsample\.proj\.ln\.linear\.weight", "stream")
    for name, module in network.named_modules():
        if hasattr(module, "attention_biases"):
            key = f"{name}.qkv.linear.weight" if hasattr(module, "qkv") else f"{name}.kv.linear.weight"
            yield Expected("heads", key, module.num_heads)
            yield Expected("query-key channels", key, module.key_dim, module.num_heads)
            yield Expected("value channels", key, module.val_dim, module.num_heads)


def _mixer(network: Any) -> Iterator[Expected]:
    yield from rows(network, r"stem\.proj\.weight", "stream")
    yield from rows(network, r".*\.mlp(_tokens|_channels)\.fc1\.weight", "hidden")


def _poolformer(network: Any) -> Iterator[Expected]:
    yield from rows(network, r"(stem|stages\.\d\.downsample)\.conv\.weight", "stream")
    yield from rows(network, r".*\.mlp\.fc1\.weight", "hidden")


def _plain(network: nn.Module) -> Iterator[Expected]:
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for name in names[:-1]:
        yield from rows(network, rf"{re.escape(name)}\.weight", "channels")


_HEADS = "the heads, and per head the query-key and the value channels"
_ROTARY = (
    "the stream; per block the hidden layer, the groups of heads that share keys, the heads in each, per group the "
    "value channels (rotary query-key channels stay)"
)

FAMILIES = {
    "decoder": Family(_ROTARY, _decoder),
    "GPT-2": Family(f"the stream; per block the hidden layer, {_HEADS}", _gpt2),
    "GPT-NeoX": Family("as GPT-2; of the query-key channels those that are not rotary", _neox),
    "OPT": Family("as GPT-2", _opt),
    "BLOOM": Family("as GPT-2, less the heads: each has a slope of its own, a constant", _bloom),
    "Phi": Family("as GPT-NeoX", _phi),
    "encoder": Family("as GPT-2; the pooled layer; the embedding where it is projected to the stream", _encoder),
    "T5": Family("as GPT-2, less the stream, which is its output; the heads of all blocks are one axis, since they "
                 "share a position bias", _t5),
    "Mamba": Family("the stream; per block the inner channels, the states and the inputs of the step", _mamba),
    "ResNet (timm)": Family("stem; streams, but where efficient channel attention convolves over the order of "
                            "channels; both inner axes of a block; squeeze channels", _resnet),
    "Res2Net": Family("stem; streams; per block each piece of the first convolution, and what comes of those that are "
                      "not added to the next", _res2net),
    "RegNet (timm)": Family("stem; streams; per block groups, their inputs and outputs; squeeze channels", _regnet),
    "CSPNet": Family("each convolution; of those that expand, each half; a stage's stream is one of these", _csp),
    "DLA": Family("the first convolutions; per tree the inner channels, the stream and the root", _dla),
    "RepVGG": Family("stem; every stage's stream", _repvgg),
    "GhostNet": Family("inner channels of every block, squeeze channels, streams, the last convolutions; a channel and "
                       "what is cheaply made of it are one unit", _ghost),
    "MobileNetV4": Family("every plain convolution; the expanded channels of every block; streams", _mobilenetv4),
    "EfficientViT": Family(f"stem; streams; expanded channels; head; per attention {_HEADS}, at both scales",
                           _efficientvit),
    "ConvNeXt (timm)": Family("streams; the hidden layer of every block", _convnext),
    "ViT (timm)": Family(f"the stream; per block the hidden layer, {_HEADS}", _vit),
    "Swin (timm)": Family(f"streams; per block the hidden layer, {_HEADS}", _swin),
    "XCiT": Family("patch convolutions; the stream; per block the hidden layer, the heads, per head the query channels "
                   "and the key-value channels", _xcit),
    "LeViT": Family(f"stem; streams; hidden layers; per attention {_HEADS}", _levit),
    "MLP-Mixer": Family("the stream; the hidden layers over tokens and over channels", _mixer),
    "PoolFormer": Family("streams; the hidden layer of every block", _poolformer),
    "VGG (timm)": Family("every convolution and every hidden linear layer", _plain),
}  # fmt: skip

_TIMM: dict[str, tuple[str, int, dict[str, Any]]] = {
    "resnet18": ("ResNet (timm)", 64, {}),
    "resnet26": ("ResNet (timm)", 64, {}),
    "resnet26d": ("ResNet (timm)", 64, {}),
    "seresnet18": ("ResNet (timm)", 64, {}),
    "ecaresnet26t": ("ResNet (timm)", 64, {}),
    "res2net50_26w_4s": ("Res2Net", 64, {}),
    "regnetx_002": ("RegNet (timm)", 64, {}),
    "regnety_002": ("RegNet (timm)", 64, {}),
    "cspresnet50": ("CSPNet", 64, {}),
    "dla34": ("DLA", 64, {}),
    "repvgg_a0": ("RepVGG", 64, {}),
    "ghostnet_050": ("GhostNet", 64, {}),
    "mobilenetv4_conv_small_035": ("MobileNetV4", 64, {}),
    "efficientvit_b0": ("EfficientViT", 64, {}),
    "convnext_atto": ("ConvNeXt (timm)", 64, {}),
    "vit_tiny_patch16_224": ("ViT (timm)", 64, {"img_size": 64, "depth": 4}),
    "deit_tiny_patch16_224": ("ViT (timm)", 64, {"img_size": 64, "depth": 4}),
    "beit_base_patch16_224": ("ViT (timm)", 64, {"img_size": 64, "depth": 2, "embed_dim": 96, "num_heads": 4}),
    "swin_tiny_patch4_window7_224": (
        "Swin (timm)", 56, {"img_size": 56, "depths": (2, 2), "embed_dim": 48, "num_heads": (2, 4)}
    ),
    "xcit_nano_12_p16_224": ("XCiT", 64, {"depth": 2}),
    "levit_128s": ("LeViT", 224, {}),
    "mixer_s32_224": ("MLP-Mixer", 64, {"img_size": 64}),
    "resmlp_12_224": ("MLP-Mixer", 64, {"img_size": 64}),
    "poolformer_s12": ("PoolFormer", 64, {}),
    "vgg11": ("VGG (timm)", 32, {}),
}  # fmt: skip

_SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_SHARED = {**_SMALL, "num_key_value_heads": 2, "head_dim": 8}
_GPT = {
    "vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2
}  # fmt: skip
_BLOOM = {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4}
_DISTIL = {"vocab_size": 64, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64}
_T5 = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
_OPT = {
    "vocab_size": 64, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "word_embed_proj_dim": 32,
}  # fmt: skip
_IMAGES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16,
    "patch_size": 8, "num_labels": 5,
}  # fmt: skip
_MAMBA = {"vocab_size": 64, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 2}

# Family, class, and the values of its configuration.
_TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("decoder", "LlamaForCausalLM", _SHARED),
    "mistral": ("decoder", "MistralForCausalLM", _SHARED),
    "qwen2": ("decoder", "Qwen2ForCausalLM", _SHARED),
    "qwen3": ("decoder", "Qwen3ForCausalLM", _SHARED),
    "gemma": ("decoder", "GemmaForCausalLM", _SHARED),
    "olmo": ("decoder", "OlmoForCausalLM", _SHARED),
    "gpt2": ("GPT-2", "GPT2LMHeadModel", _GPT),
    "gpt_neox": ("GPT-NeoX", "GPTNeoXForCausalLM", _SMALL),
    "opt": ("OPT", "OPTForCausalLM", _OPT),
    "bloom": ("BLOOM", "BloomForCausalLM", _BLOOM),
    "phi": ("Phi", "PhiForCausalLM", _SMALL),
    "bert": ("encoder", "BertForSequenceClassification", _SMALL),
    "roberta": ("encoder", "RobertaForSequenceClassification", _SMALL),
    "electra": ("encoder", "ElectraForSequenceClassification", {**_SMALL, "embedding_size": 16}),
    "albert": ("encoder", "AlbertForSequenceClassification", {**_SMALL, "embedding_size": 16}),
    "distilbert": ("encoder", "DistilBertForSequenceClassification", _DISTIL),
    "t5": ("T5", "T5EncoderModel", _T5),
    "vit": ("encoder", "ViTForImageClassification", _IMAGES),
    "deit": ("encoder", "DeiTForImageClassification", _IMAGES),
    "mamba": ("Mamba", "MambaForCausalLM", _MAMBA),
}

ZOO = [*(f"timm/{name}" for name in _TIMM), *(f"transformers/{name}" for name in _TRANSFORMERS)]


def build(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return a network of the zoo at random initialisation, and a batch of two images or rows of token ids."""
    package, _, model = name.partition("/")
    library: Any = importlib.import_module(package)
    torch.manual_seed(0)
    if package == "timm":
        _, side, options = _TIMM[model]
        return library.create_model(model, pretrained=False, **options), (torch.randn(2, 3, side, side),)
    _, kind, values = _TRANSFORMERS[model]
    network = getattr(library, kind)
    network = network(network.config_class(**values))
    if "image_size" in values:
        return network, (torch.randn(2, 3, values["image_size"], values["image_size"]),)
    return network, (torch.randint(3, values["vocab_size"], (2, 7)),)


def family_of(name: str) -> str:
    """Return the key in `FAMILIES` of a network of the zoo."""
    package, _, model = name.partition("/")
    return (_TIMM if package == "timm" else _TRANSFORMERS)[model][0]
