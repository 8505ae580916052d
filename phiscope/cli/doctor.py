"""`phiscope doctor`: what this machine can do, and the mode each model would run in."""

from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from phiscope.cli.command import Command
from phiscope.cli.exits import OK
from phiscope.cli.printing import emit, emit_facts, emit_json, show_bytes

if TYPE_CHECKING:
    from phiscope.runtime import Machine


def _add_arguments(parser: ArgumentParser) -> None:
    del parser  # it takes none


def _run(arguments: Namespace) -> int:
    report = _examine()
    if arguments.json:
        emit_json(report)
    else:
        _print(report)
    return OK


def _examine() -> dict[str, Any]:
    import torch

    import phiscope
    from phiscope.kernels import build
    from phiscope.runtime import MODES, describe_machine, find_obstacle

    machine = describe_machine()
    return {
        "phiscope": phiscope.__version__,
        "torch": torch.__version__,
        "num_threads": torch.get_num_threads(),
        **asdict(machine),
        "has_cpu_bf16": machine.has_cpu_bf16,
        "kernels": build.find_obstacle(),
        "modes": {name: find_obstacle(mode, machine) for name, mode in MODES.items()},
        "auto": _choose_modes(machine),
    }


def _choose_modes(machine: "Machine") -> dict[str, dict[str, str]]:
    from phiscope.config import PRESETS
    from phiscope.runtime import explain_mode, select_mode

    chosen = {}
    for name, config in PRESETS.items():
        mode = select_mode(
            "auto", num_parameters=config.num_parameters, machine=machine, stored=config.dtype
        )
        chosen[name] = {"mode": mode.name, "why": explain_mode(mode, machine)}
    return chosen


def _print(report: dict[str, Any]) -> None:
    memory = f"{show_bytes(report['available_memory'])} free of {show_bytes(report['memory'])}"
    emit_facts(
        [
            ("phiscope", report["phiscope"]),
            ("torch", f"{report['torch']}, {report['num_threads']} threads"),
            ("cpu", f"{report['cpu']}, {report['num_cores']} cores"),
            ("features", " ".join(report["cpu_features"]) or "none known"),
            ("bf16", "has instructions" if report["has_cpu_bf16"] else "emulated, slow"),
            ("kernels", report["kernels"] or "built for this machine"),
            ("memory", memory),
            ("gpus", ", ".join(report["gpus"]) or "none"),
        ]
    )
    emit("\nmodes")
    emit_facts((f"  {name}", reason or "ready") for name, reason in report["modes"].items())
    emit("\nwhat --mode auto chooses")
    for name, choice in report["auto"].items():
        emit_facts([(f"  {name}", f"{choice['mode']}: {choice['why']}")])


DOCTOR = Command(
    name="doctor",
    summary="say what this machine can do and which mode it will choose",
    usage="[options]",
    add_arguments=_add_arguments,
    run=_run,
)
