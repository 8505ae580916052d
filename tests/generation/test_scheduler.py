import random

import pytest

from phiscope.generation.scheduler import Job, Scheduler


def make_job(family, num_prompt, **kwargs):
    return Job(family=family, num_prompt=num_prompt, num_tokens=num_prompt, **kwargs)


def run_step(scheduler):
    """Run what is planned, and let each job choose a token once nothing is pending."""
    admitted = scheduler.admit()
    chunks = scheduler.plan()
    for chunk in chunks:
        assert chunk.start == chunk.job.num_cached
        chunk.job.num_cached += chunk.length
    for job in scheduler.running:
        if not job.num_pending:
            job.num_tokens += 1
    return admitted, chunks


@pytest.mark.parametrize(("slots", "budget"), [(0, 8), (4, 3), (1, 0)])
def test_impossible_sizes_are_refused(slots, budget):
    with pytest.raises(ValueError, match="at least"):
        Scheduler(slots, budget)


def test_slots_go_in_order_of_arrival():
    scheduler = Scheduler(2, 8)
    jobs = [make_job(name, 3) for name in "abc"]
    for job in jobs:
        scheduler.add(job)
    assert [admission.job for admission in scheduler.admit()] == jobs[:2]
    assert scheduler.num_waiting == 1
    scheduler.finish(jobs[1])
    (admission,) = scheduler.admit()
    assert admission.job is jobs[2]
    assert admission.source is None


def test_prompts_run_in_chunks_within_the_budget():
    scheduler = Scheduler(2, 4)
    scheduler.add(make_job("a", 6))
    scheduler.add(make_job("b", 5))
    lengths = [[(c.job.family, c.length) for c in run_step(scheduler)[1]] for _ in range(4)]
    assert lengths == [
        [("a", 4)],
        [("a", 2), ("b", 2)],
        [("a", 1), ("b", 3)],
        [("a", 1), ("b", 1)],
    ]


def test_a_long_prompt_stalls_no_decode():
    scheduler = Scheduler(3, 8)
    short = make_job("short", 2)
    scheduler.add(short)
    run_step(scheduler)
    scheduler.add(make_job("long", 500))
    for _ in range(20):
        before = short.num_cached
        _, chunks = run_step(scheduler)
        assert short.num_cached == before + 1
        assert sum(chunk.length for chunk in chunks) == 8


def test_decodes_in_all_other_slots_leave_room_for_a_prompt():
    scheduler = Scheduler(3, 3)
    decodes = [make_job(name, 1) for name in "ab"]
    for job in decodes:
        scheduler.add(job)
    run_step(scheduler)
    late = make_job("late", 10)
    scheduler.add(late)
    for steps in range(1, 11):
        run_step(scheduler)
        assert late.num_cached == steps


def test_family_waits_for_its_prompt_and_lets_others_pass():
    scheduler = Scheduler(3, 4)
    first, second = make_job("a", 6), make_job("a", 6)
    other = make_job("b", 1)
    for job in (first, second, other):
        scheduler.add(job)
    admitted, _ = run_step(scheduler)
    assert [a.job for a in admitted] == [first, other]
    assert run_step(scheduler)[0] == []
    (admission,), _ = run_step(scheduler)
    assert admission.job is second
    assert admission.source == first.slot
    assert second.num_cached == 6


def test_heir_takes_slot_and_prompt_of_its_family():
    scheduler = Scheduler(1, 8)
    first, second = make_job("a", 6), make_job("a", 6)
    other = make_job("b", 1)
    for job in (first, other, second):
        scheduler.add(job)
    run_step(scheduler)
    slot = first.slot
    assert scheduler.finish(first) is second
    assert (second.slot, second.num_cached) == (slot, 6)
    assert scheduler.admit() == []
    assert scheduler.finish(second) is None
    assert [a.job for a in scheduler.admit()] == [other]


def test_dropped_family_leaves_nothing_behind():
    scheduler = Scheduler(2, 8)
    jobs = [make_job("a", 2) for _ in range(4)]
    for job in jobs:
        scheduler.add(job)
    run_step(scheduler)
    run_step(scheduler)
    assert scheduler.num_free_slots == 0
    scheduler.drop("a")
    assert scheduler.is_idle
    assert scheduler.num_free_slots == 2
    assert all(job.slot is None for job in jobs)


@pytest.mark.parametrize("seed", range(20))
def test_slots_are_never_shared_nor_lost(seed):
    rng = random.Random(seed)
    num_slots = rng.randint(1, 4)
    scheduler = Scheduler(num_slots, num_slots + rng.randint(0, 5))
    waiting = [
        [make_job(family, size) for _ in range(rng.randint(1, 3))]
        for family in range(15)
        if (size := rng.randint(1, 12))
    ]
    for _ in range(2000):
        if waiting and rng.random() < 0.3:
            for job in waiting.pop():
                scheduler.add(job)
        run_step(scheduler)
        for job in scheduler.running:
            if job.slot is not None and not job.is_prefilling and rng.random() < 0.2:
                scheduler.finish(job)
        if scheduler.running and rng.random() < 0.03:
            scheduler.drop(rng.choice(scheduler.running).family)
        slots = [job.slot for job in scheduler.running]
        assert len({*slots}) == len(slots) == num_slots - scheduler.num_free_slots
    assert scheduler.is_idle
    assert scheduler.num_free_slots == num_slots
