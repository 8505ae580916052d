"""Extraction on a GPU: copies that go on in the background, flash attention, shared prefixes."""

import copy

import numpy as np
import pytest
import torch
from plain_extraction import STEM, TEXTS, extract, make_phi, make_rows

from phiscope.api import Phi
from phiscope.runtime import MODES

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
POINTS = "embeddings, resid_post.[:], q_rot.1, mlp_act.1, attn_entropy.1, final_norm"


@pytest.fixture(scope="module")
def phi():
    """In float64 on the CPU, with weights that float16 holds exactly."""
    phi = make_phi()
    phi.model.half().double()
    return phi


def move(phi, mode):
    """The same weights as they run in a mode."""
    model = copy.deepcopy(phi.model).to(mode.device, mode.dtype)
    model.set_attention(mode.attention)
    return Phi(model, phi.tokenizer, mode)


@pytest.mark.parametrize("mode", ["fp16-flash", "fp16", "fp32"])
@pytest.mark.parametrize("pool", [(), ("mean", "last", "max")], ids=["tokens", "texts"])
@pytest.mark.parametrize(
    "settings", [{}, {"overflow": "window", "window": 16, "stride": 8}], ids=str
)
def test_states_are_those_of_the_cpu(phi, mode, pool, settings):
    rows = make_rows(*TEXTS, STEM + "the same and more", "a longer text of its own " * 2)
    given = {"points": POINTS, "pool": pool, "dtype": "float32", **settings}
    wanted, found = extract(phi, rows, **given), extract(move(phi, MODES[mode]), rows, **given)
    assert found.columns.keys() == wanted.columns.keys()
    tolerance = 1e-4 if mode == "fp32" else 2e-2
    for name, states in wanted.columns.items():
        scale = np.abs(states).max()
        np.testing.assert_allclose(
            found.columns[name], states, atol=tolerance * scale, err_msg=name
        )
