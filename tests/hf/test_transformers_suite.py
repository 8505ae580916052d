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


@pytest.fixture(autouse=True)
def _one_thread_loads(monkeypatch):
    """The suite loads hundreds of tiny models; test_loading.py loads with threads, as users do."""
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")


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
    "needs an accelerator": (
        "test_can_load_with_device_context_manager",
        "test_can_load_with_global_device_set",
        "test_cpu_offload",
        "test_disk_offload_bin",
        "test_disk_offload_safetensors",
        "test_eager_matches_batched_and_grouped_inference_2_bf16",
        "test_flex_attention_with_grads",
        "test_model_parallelism",
        "test_sdpa_can_compile_dynamic",
        "test_sdpa_can_dispatch_on_flash",
    ),
    "needs a package for FlashAttention 2, 3 or 4, kernels of the hub, or Apple's MPS": (
        "test_flash_attn_2_can_compile_with_attention_mask_None_without_graph_break",
        "test_flash_attn_2_can_dispatch_composite_models",
        "test_flash_attn_2_fp32_ln",
        "test_flash_attn_2_from_config",
        "test_flash_attn_2_inference_equivalence",
        "test_flash_attn_2_inference_equivalence_right_padding",
        "test_flash_attn_3_can_dispatch_composite_models",
        "test_flash_attn_3_from_config",
        "test_flash_attn_3_inference_equivalence",
        "test_flash_attn_3_inference_equivalence_right_padding",
        "test_flash_attn_4_can_dispatch_composite_models",
        "test_flash_attn_4_from_config",
        "test_flash_attn_4_inference_equivalence",
        "test_flash_attn_4_inference_equivalence_right_padding",
        "test_flash_attn_kernels_inference_equivalence",
        "test_flash_attn_kernels_mps_inference_equivalence",
        "test_kernels_can_load_without_crashing",
    ),
    "needs deepspeed": (
        "test_resize_embeddings_untied_with_deepspeed",
        "test_resize_embeddings_untied_with_deepspeed_multi_gpu",
        "test_resize_tokens_embeddings_with_deepspeed",
        "test_resize_tokens_embeddings_with_deepspeed_multi_gpu",
    ),
    "of models made of several, with experts, an encoder, sliding windows or learned positions": (
        "test_attn_implementation_composite_models",
        "test_can_set_attention_dynamically_composite_model",
        "test_eager_matches_batched_and_grouped_inference_0_fp16",
        "test_eager_matches_batched_and_grouped_inference_1_fp32",
        "test_encoder_decoder_loss_no_double_shift",
        "test_internal_model_config_and_subconfig_are_same",
        "test_moe_models_record_router_logits",
        "test_output_router_logits_from_config",
        "test_resize_position_vector_embeddings",
        "test_sdpa_can_dispatch_composite_models",
        "test_sliding_window_mask",
        "test_vision_axial_rope",
    ),
    "of how transformers' own classes are built: hooks that record, tables, renamings": (
        "test_can_capture_specific_layers_hidden_states",
        "test_can_load_from_already_mapped_keys",
        "test_capture_outputs_decorator",
        "test_keep_in_fp32_modules",
        "test_keep_in_fp32_modules_exist",
        "test_model_rope_scaling_frequencies",
        "test_reverse_loading_mapping",
    ),
    "the suite itself leaves it out, as slow: see test_compilation.py": (
        "test_torch_compile_for_training",
    ),
    "asks for generation's own mixin, which is not distributed: see test_generation.py": (
        "test_generation_tester_mixin_inheritance",
    ),
}
EXPECTED = {name for names in SKIPPED.values() for name in names}


class PhiTest(suite.ModelTesterMixin, unittest.TestCase):
    all_model_classes = (
        PhiModel,
        PhiForCausalLM,
        PhiForSequenceClassification,
        PhiForTokenClassification,
    )

    test_can_init_all_missing_weights_before_2023 = True

    def setUp(self):
        self.model_tester = ModelTester()

    def skipTest(self, reason):  # noqa: N802
        if self._testMethodName not in EXPECTED:
            self.fail(f"skipped without being listed: {reason}")
        super().skipTest(reason)

    def test_generation_tester_mixin_inheritance(self):
        self.skipTest("the mixin is not distributed")


def test_every_test_that_is_left_out_is_listed():
    methods = {name: getattr(PhiTest, name) for name in dir(PhiTest) if name.startswith("test_")}
    left_out = {name for name in methods if getattr(methods[name], "__unittest_skip__", False)}
    assert left_out <= EXPECTED
    assert set(methods) >= EXPECTED
