import dataclasses

import pytest
import torch

from phiscope.training.precision import select_precision
from phiscope.training.trainer import train


def test_auto_is_one_of_both():
    assert select_precision("auto") in (torch.float32, torch.bfloat16)


def test_an_unknown_precision_is_named():
    with pytest.raises(ValueError, match=r"no precision 'fp8'; choose from auto, fp32, bf16"):
        select_precision("fp8")


def test_bf16_trains_as_fp32_does_but_for_rounding(trained, options):
    rounded = train(dataclasses.replace(options, precision="bf16"))
    assert rounded.precision == "bfloat16"
    assert rounded.bits_per_byte == pytest.approx(trained.bits_per_byte, rel=0.02)
    assert rounded.bits_per_byte != trained.bits_per_byte
