"""Making our classes known to transformers' Auto classes."""

import transformers

from phiscope.hf.causal_lm import PhiForCausalLM
from phiscope.hf.classification import PhiForSequenceClassification, PhiForTokenClassification
from phiscope.hf.configuration import MixformerConfig, PhiConfig, PhiMsftConfig
from phiscope.hf.model import PhiModel

CONFIGS = {config.model_type: config for config in (PhiMsftConfig, MixformerConfig)}
MODELS = {
    "AutoModel": PhiModel,
    "AutoModelForCausalLM": PhiForCausalLM,
    "AutoModelForSequenceClassification": PhiForSequenceClassification,
    "AutoModelForTokenClassification": PhiForTokenClassification,
}


def register() -> None:
    """Register configs, models and the tokenizer; a second time changes nothing."""
    for model_type, config in CONFIGS.items():
        transformers.AutoConfig.register(model_type, config, exist_ok=True)
    for auto, model in MODELS.items():
        getattr(transformers, auto).register(PhiConfig, model, exist_ok=True)
    transformers.AutoTokenizer.register(
        PhiConfig, fast_tokenizer_class=transformers.GPT2TokenizerFast, exist_ok=True
    )
