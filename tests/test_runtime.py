from dataclasses import replace

import pytest
import torch

from phiscope import runtime
from phiscope.cache import KVCache
from phiscope.config import PRESETS
from phiscope.errors import UnsupportedError
from phiscope.runtime import (
    MODES,
    Machine,
    describe_machine,
    find_obstacle,
    fit_slots,
    select_mode,
)

LAPTOP = Machine(
    cpu="a laptop", num_cores=2, cpu_features=("avx2",), memory=16 << 30, available_memory=14 << 30
)
HOPPER = Machine(
    cpu="a server",
    num_cores=16,
    cpu_features=("avx512_bf16",),
    memory=128 << 30,
    available_memory=120 << 30,
    gpus=("NVIDIA H100",),
    gpu_memory=80 << 30,
    has_flash=True,
    has_triton=True,
    has_gpu_bf16=True,
)
VOLTA = Machine(
    cpu="a server",
    num_cores=8,
    cpu_features=("avx2",),
    memory=64 << 30,
    available_memory=60 << 30,
    gpus=("Tesla V100",),
    gpu_memory=16 << 30,
)
PHI_2 = 2_779_683_840


@pytest.mark.parametrize(
    ("machine", "num_parameters", "mode"),
    [
        (HOPPER, PHI_2, "fp16-flash"),
        (VOLTA, PHI_2, "fp16"),
        (VOLTA, 4 * PHI_2, "fp32-cpu"),
        (LAPTOP, PHI_2, "fp32-cpu"),
        (LAPTOP, 2 * PHI_2, "bf16-fp32-cpu"),
        (replace(LAPTOP, cpu_features=("avx512_bf16", "amx_bf16")), 2 * PHI_2, "bf16-cpu"),
        (LAPTOP, 5_000_000, "fp32-cpu"),
    ],
)
def test_auto_takes_what_the_machine_serves_best(machine, num_parameters, mode):
    assert select_mode("auto", num_parameters=num_parameters, machine=machine).name == mode


@pytest.mark.parametrize(
    ("stored", "machine", "mode"),
    [
        ("bfloat16", LAPTOP, "bf16-fp32-cpu"),
        ("float16", LAPTOP, "fp16-fp32-cpu"),
        ("float32", LAPTOP, "fp32-cpu"),
        ("int4", HOPPER, "int4-cpu"),
        ("bfloat16", HOPPER, "fp16-flash"),
    ],
)
def test_auto_on_a_cpu_takes_large_weights_as_they_are_stored(stored, machine, mode):
    options = {"machine": machine, "stored": stored}
    assert select_mode("auto", num_parameters=PHI_2, **options).name == mode
    if mode.endswith("fp32-cpu"):
        assert select_mode("auto", num_parameters=5_000_000, **options).name == "fp32-cpu"


@pytest.mark.parametrize("name", ["fp16-flash", "fp16", "fp32", "bf16", "bf16-flash"])
def test_a_cuda_mode_without_a_gpu_says_why_and_what_instead(name):
    with pytest.raises(UnsupportedError, match=rf"'{name}' needs a CUDA GPU.*use mode 'fp32-cpu'"):
        select_mode(name, num_parameters=PHI_2, machine=LAPTOP)


@pytest.mark.parametrize(
    ("name", "reason"), [("fp16-flash", "FlashAttention"), ("bf16", "GPU with bf16")]
)
def test_an_older_gpu_says_what_it_lacks(name, reason):
    with pytest.raises(UnsupportedError, match=rf"{reason}.*use mode 'fp16'"):
        select_mode(name, num_parameters=PHI_2, machine=VOLTA)


def test_every_mode_runs_on_a_new_gpu_machine():
    assert [name for name, mode in MODES.items() if find_obstacle(mode, HOPPER)] == []


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_integers_on_a_gpu_need_triton(name):
    machine = replace(HOPPER, has_triton=False)
    with pytest.raises(UnsupportedError, match=rf"'{name}' needs Triton.*use mode 'fp16-flash'"):
        select_mode(name, num_parameters=PHI_2, machine=machine)


def test_an_unknown_mode_is_named_with_the_choice():
    with pytest.raises(UnsupportedError, match=r"'fp16-cpu'; choose from auto, fp16-flash"):
        select_mode("fp16-cpu", num_parameters=1, machine=LAPTOP)


def test_the_cards_four_modes_are_there():
    card = {
        "fp16-flash": ("cuda", torch.float16, "flash"),
        "fp16": ("cuda", torch.float16, "sdpa"),
        "fp32": ("cuda", torch.float32, "sdpa"),
        "fp32-cpu": ("cpu", torch.float32, "native"),
    }
    assert {n: (m.device, m.dtype, m.attention) for n, m in MODES.items() if n in card} == card


def test_a_cache_has_the_slots_that_a_gpu_has_room_for(monkeypatch):
    slot = KVCache.count_slot_bytes(PRESETS["phi-2"], 2048, torch.float16)
    assert slot == 2 * 32 * 2048 * 2560 * 2
    for free_slots, slots in ((100, 8), (5.1, 3), (0.5, 1)):
        free = int(free_slots * slot)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda free=free: (free, 80 << 30))
        assert fit_slots(slot, "cuda") == slots
    assert fit_slots(slot, "cpu") == 8


def test_a_container_has_no_more_memory_than_its_limit(monkeypatch, tmp_path):
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    monkeypatch.setattr(runtime, "_CONTAINER", tmp_path)
    machine = describe_machine()
    assert (machine.memory, machine.available_memory) == (3_000_000, 2_000_000)
    (tmp_path / "memory.max").write_text("max\n")
    assert describe_machine().memory > 3_000_000


def test_this_machine_can_be_described():
    machine = describe_machine()
    assert machine.num_cores >= 1
    assert 0 < machine.available_memory <= machine.memory
    assert bool(machine.gpus) == torch.cuda.is_available()
