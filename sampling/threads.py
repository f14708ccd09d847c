"""The number of threads for sampling on a CPU: chosen by measurement, unless it is fixed."""

import torch

from distributed import launched
from sampling.draw import SamplingJob, own_batches
from sampling.thread_times import (
    fastest,
    may_measure_threads,
    measure_threads,
    speeds,
    threads_from_environment,
)
from utils import NoisePerImage, use_threads

MIN_CALLS = 60  # network calls; for fewer the measurement would take too much


def choose_threads(job: SamplingJob, repeats: int = 1) -> str:
    """Set the number of threads for a job that is drawn `repeats` times.

    Returns it in words, with the reason; "" if it is PyTorch's own.
    """
    wanted, plan = job.request.threads, job.plan
    if wanted != "auto":
        use_threads(wanted)
        return f"threads: {wanted}"
    if threads_from_environment():
        return ""
    calls = repeats * len(own_batches(range(len(plan.batches)))) * job.steps
    if launched() or not may_measure_threads(job.device) or calls < MIN_CALLS:
        return ""
    batch = plan.batches[0]
    x, level = plan.noise(batch, NoisePerImage(0, batch)), plan.levels[0]
    denoise = job.denoiser(batch)
    times = measure_threads(lambda: denoise(x, level), torch.get_num_threads())
    count = fastest(times)
    use_threads(count)
    return f"threads: {count} ({speeds(times, 1, 'network calls')}); --threads {count} repeats it"
