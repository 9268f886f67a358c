"""transformers' BertModel and diffusers' RobertaSeriesModelWithTransformation: config.json to a BertSpec and back, and
the names of their tensors."""

from __future__ import annotations

from kotoe.checkpoints.keys import LARGEST_DEPTH, LARGEST_WIDTH, Config, Keys, make_spec
from kotoe.spec import BertSpec
from kotoe.tokens import Tokenizer

BERT, XLM = "bert", "xlm-roberta"  # model_type

_SHARED: Config = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}
DEFAULTS: dict[str, Config] = {
    BERT: {**_SHARED, "use_attention_mask": False},
    XLM: {**_SHARED, "use_attention_mask": True, "project_dim": 512, "has_pre_transformation": False},
}
FIXED: Config = {
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "is_encoder_decoder": False,
}
# Of training, of transformers' bookkeeping, of the pooler (which no UNet reads), or (the ids) said by the tokenizer.
IGNORED = tuple(
    "architectures attention_probs_dropout_prob bos_token_id chunk_size_feed_forward classifier_dropout "
    "directionality dtype eos_token_id gradient_checkpointing hidden_dropout_prob id2label initializer_range label2id "
    "learn_encoder model_type num_labels output_attentions output_hidden_states output_past pad_token_id "
    "pooler_fc_size pooler_fn pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type "
    "problem_type return_dict tie_word_embeddings torch_dtype transformers_version use_cache".split()
)


def bert_spec(config: Config, tokenizer: Tokenizer, where: str = "text_encoder/config.json") -> BertSpec:
    """The BertSpec of a config.json whose model_type is "bert" or "xlm-roberta", with the tokenizer's own ids."""
    kind = str(config["model_type"])
    keys = Keys(config, {**DEFAULTS[kind], **FIXED}, where, IGNORED)
    keys.fixed(**FIXED)
    width, heads = keys.whole("hidden_size", LARGEST_WIDTH), keys.whole("num_attention_heads", LARGEST_WIDTH)
    if width % heads:
        raise keys.refuse("num_attention_heads", f"a divisor of hidden_size {width}")
    projected: Config = {}
    if kind == XLM:
        projected = {
            "projection_dim": keys.whole("project_dim", LARGEST_WIDTH),
            "projects_penultimate": keys.flag("has_pre_transformation"),
        }
    spec: BertSpec = make_spec(
        lambda: BertSpec(
            vocab_size=keys.whole("vocab_size", 2**24),
            hidden_size=width,
            intermediate_size=keys.whole("intermediate_size", LARGEST_WIDTH),
            num_layers=keys.whole("num_hidden_layers", LARGEST_DEPTH),
            num_heads=heads,
            positions=keys.whole("max_position_embeddings", LARGEST_WIDTH),
            token_types=keys.whole("type_vocab_size", LARGEST_WIDTH),
            layer_norm_eps=keys.number("layer_norm_eps"),
            bos=tokenizer.bos,
            eos=tokenizer.eos,
            pad=tokenizer.pad,
            counts_from_pad=kind == XLM,
            masked=keys.flag("use_attention_mask"),
            **projected,
        ),
        where,
    )
    return spec


def bert_config(spec: BertSpec) -> Config:
    """The config.json of a BertSpec, every key written out."""
    config: Config = {
        "architectures": ["BertModel"],
        "model_type": BERT,
        **FIXED,
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "max_position_embeddings": spec.positions,
        "type_vocab_size": spec.token_types,
        "layer_norm_eps": spec.layer_norm_eps,
        "use_attention_mask": spec.masked,
        "bos_token_id": spec.bos,
        "eos_token_id": spec.eos,
        "pad_token_id": spec.pad,
    }
    if spec.projection_dim is not None:
        config |= {
            "architectures": ["RobertaSeriesModelWithTransformation"],
            "model_type": XLM,
            "project_dim": spec.projection_dim,
            "has_pre_transformation": spec.projects_penultimate,
            "pooler_fn": "cls",
            "learn_encoder": False,
        }
    return config


def name_of(theirs: str) -> str | None:
    """A file's tensor name to ours; None for what no UNet reads: the pooler, and AltCLIP's temperature."""
    ours = theirs.removeprefix("roberta.")
    return None if ours.startswith("pooler.") or ours == "logit_scale" else ours


def name_for(ours: str, spec: BertSpec) -> str:
    """Our tensor name to the file's."""
    inner = spec.projection_dim is not None and ours.startswith(("embeddings.", "encoder."))
    return f"roberta.{ours}" if inner else ours
