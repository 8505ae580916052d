"""Phi for transformers: its classes over our forward, registered with the Auto classes.

Importing this makes `AutoModelForCausalLM.from_pretrained` and its kin open checkpoints of
`model_type` "phi-msft" and "mixformer-sequential" with these classes, and never run the code that
comes with them. For `model_type: "phi"` transformers has classes of its own, so ours are used by
name.
"""

from phiscope.errors import MissingExtraError

try:
    import transformers  # noqa: F401 - only its absence is looked for here
except ModuleNotFoundError as error:
    raise MissingExtraError("hf") from error

from phiscope.checkpoint.hub_card import CardDetails
from phiscope.checkpoint.hub_folder import export_hub
from phiscope.hf.adapters import get_peft_model
from phiscope.hf.causal_lm import PhiForCausalLM
from phiscope.hf.classification import PhiForSequenceClassification, PhiForTokenClassification
from phiscope.hf.configuration import MixformerConfig, PhiConfig, PhiMsftConfig
from phiscope.hf.model import PhiModel, PhiPreTrainedModel
from phiscope.hf.registration import register

__all__ = [
    "CardDetails",
    "MixformerConfig",
    "PhiConfig",
    "PhiForCausalLM",
    "PhiForSequenceClassification",
    "PhiForTokenClassification",
    "PhiModel",
    "PhiMsftConfig",
    "PhiPreTrainedModel",
    "export_hub",
    "get_peft_model",
    "register",
]

register()
