"""Stages that show their progress as upstream code does: with tqdm."""

import sys
import time

late = {}


def load(worker, settings):
    if settings.get("early"):
        import tqdm

        for _ in tqdm.tqdm(range(3), desc="Loading"):
            pass


def run(stage, state, job):
    STAGES[stage](job)


def step(job):
    """Until nothing is held back and the pause after the last message is over."""
    while job._pending or time.monotonic() - job._sent_at < 0.05:
        time.sleep(0.002)


def plain(job):
    from tqdm import tqdm

    for _ in tqdm(range(4), desc="Sampling"):
        step(job)


def disabled(job):
    from tqdm.auto import tqdm

    for _ in tqdm(range(4), desc="Sampling", disable=True):
        step(job)


def by_hand(job):
    from tqdm.auto import tqdm

    bar = tqdm(total=4, desc="Sampling")
    for _ in range(4):
        step(job)
        bar.update()
    bar.close()


def by_numbers_of_numpy(job):
    import numpy
    from tqdm import tqdm

    with tqdm(total=4, desc="Sampling") as bar:
        for _ in range(4):
            step(job)
            bar.update(numpy.float32(1))


def disabled_by_hand(job):
    from tqdm.auto import trange

    with trange(4, desc="Sampling", disable=True) as bar:
        for _ in range(4):
            step(job)
            bar.update(1)


def subclass(job):
    from tqdm.std import tqdm

    class Own(tqdm):
        def update(self, n=1):
            return super().update(n)

    for _ in Own(iter(range(4)), total=4, desc="Sampling"):
        step(job)


def endless(job):
    from tqdm import tqdm

    for _ in tqdm(iter(range(6)), desc="Marching"):
        step(job)


def within(job):
    from tqdm import tqdm

    job.progress(0.2, "Views", until=0.6)
    for _ in tqdm(range(4)):
        step(job)
    for _ in tqdm(range(4)):
        step(job)
    step(job)
    job.progress(0.6, "Mesh")
    step(job)
    for _ in tqdm(range(2)):  # no range is given: the bar only shows its steps
        step(job)
    job.progress(0.9, "Texture")


def nested(job):
    from tqdm import tqdm

    for _ in tqdm(range(2), desc="View"):
        for _ in tqdm(range(2), desc="Step", leave=False):
            step(job)


def left_early(job):
    from tqdm import tqdm

    for number in tqdm(range(100)):
        step(job)
        if number == 1:
            break
    for _ in tqdm(range(2), desc="Second"):
        step(job)


def never_closed(job):
    from tqdm import tqdm

    late["bar"] = tqdm(total=2, desc="First")
    late["bar"].update(2)
    step(job)
    for _ in tqdm(range(2), desc="Second"):
        step(job)


def after_never_closed(job):
    late["bar"].update(1)
    plain(job)


def written(job):
    from tqdm import tqdm

    for _ in tqdm(range(3), desc="Sampling"):
        tqdm.write("said beside the bar")
        print("printed beside the bar", file=sys.stderr)


def described(job):
    from tqdm import tqdm

    with tqdm(total=2) as bar:
        bar.set_description("Baking")
        step(job)
        bar.set_postfix(loss=1)
        bar.n = 1
        bar.refresh()
        step(job)


def forever(job):
    from tqdm.auto import tqdm

    try:
        for _ in tqdm(iter(int, 1), disable=job.params.disable):
            time.sleep(0.005)
    except Exception:
        print("swallowed")


def threads(job):
    from tqdm.contrib.concurrent import thread_map

    assert thread_map(abs, range(-20, 0), max_workers=4, desc="Points")[0] == 20


STAGES = {name: value for name, value in list(globals().items()) if callable(value)}
