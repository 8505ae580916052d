"""transformers' own common model tests, on our classes."""

import unittest

import pytest
import torch
import transformers
from hf import suite_source

from phiscope.hf import (
    PhiConfig,
    PhiForCausalLM,
    PhiForSequenceClassification,
    PhiForTokenClassification,
    PhiModel,
)

if not suite_source.FOLDER.is_dir():
    pytest.skip(
        f"transformers {transformers.__version__}'s tests are not set up; `make test` fetches them",
        allow_module_level=True,
    )
suite = suite_source.load_suite()
pytestmark = pytest.mark.filterwarnings("default")  # the suite calls much that warns


class ModelTester:
    """A small model of each class, and inputs for it, as the suite wants them."""

    batch_size, seq_length = 4, 7
    hidden_size, num_hidden_layers, num_attention_heads = 32, 2, 4
    is_training = True

    def get_config(self):
        return PhiConfig(
            vocab_size=99,
            hidden_size=self.hidden_size,
            intermediate_size=37,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            max_position_embeddings=64,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
            },
            num_labels=3,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )

    def prepare_config_and_inputs_for_common(self):
        ids = torch.randint(3, 99, (self.batch_size, self.seq_length))
        mask = torch.tril(torch.ones_like(ids))
        return self.get_config(), {"input_ids": ids, "attention_mask": mask}


SKIPPED = {
    "test_generation_tester_mixin_inheritance": "asks for a mixin that is not distributed",
}


class PhiTest(suite.ModelTesterMixin, unittest.TestCase):
    all_model_classes = (
        PhiModel,
        PhiForCausalLM,
        PhiForSequenceClassification,
        PhiForTokenClassification,
    )

    def setUp(self):
        self.model_tester = ModelTester()


for name, reason in SKIPPED.items():
    setattr(PhiTest, name, unittest.skip(reason)(getattr(PhiTest, name)))
