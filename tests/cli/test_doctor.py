import json

from phiscope.config import PRESETS
from phiscope.runtime import MODES, describe_machine, find_obstacle, select_mode


def test_doctor_says_for_every_mode_whether_it_runs_here(run):
    code, out, _ = run("doctor")
    assert code == 0
    for name, mode in MODES.items():
        reason = find_obstacle(mode, describe_machine()) or "ready"
        assert any(line.split()[:1] == [name] and reason[:20] in line for line in out.splitlines())


def test_doctor_names_the_mode_that_auto_chooses(run):
    report = json.loads(run("doctor", "--json")[1])
    machine = describe_machine()
    for name, config in PRESETS.items():
        size, stored = config.num_parameters, config.dtype
        chosen = select_mode("auto", num_parameters=size, machine=machine, stored=stored)
        assert report["auto"][name]["mode"] == chosen.name
        assert report["auto"][name]["why"]


def test_doctor_in_json_describes_the_machine(run):
    report = json.loads(run("doctor", "--json")[1])
    assert report["num_cores"] == describe_machine().num_cores
    assert report["memory"] >= report["available_memory"] > 0
