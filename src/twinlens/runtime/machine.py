"""What this process may use of the machine: cores, and the processor's name."""

import functools
import os
import platform
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
CPU_INFO = Path("/proc/cpuinfo")


def usable_cores() -> int:
    """Cores this process may run on: by affinity, and by a container's share of time.

    A container with half a core gets one; os.cpu_count() would say 64 on a large host.
    """
    if hasattr(os, "sched_getaffinity"):  # Linux: containers and taskset narrow it
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    share = _container_share(CGROUP)
    return cores if share is None else max(1, min(cores, round(share)))


def _container_share(root: Path) -> float | None:
    """Cores' worth of time that control group version 2, then 1, grants; None for no limit."""
    try:
        granted, period = (root / "cpu.max").read_text().split()[:2]
        return None if granted == "max" else int(granted) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        pass
    try:
        granted = (root / "cpu" / "cpu.cfs_quota_us").read_text()
        period = (root / "cpu" / "cpu.cfs_period_us").read_text()
        return int(granted) / int(period) if int(granted) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


@functools.cache
def multiplies_bytes_exactly() -> bool:
    """Whether sums of 8-bit products are 32 bits wide: VNNI on x86, and every other processor."""
    if platform.machine().lower() not in ("x86_64", "amd64", "i386", "i686"):
        return True
    try:
        flags = CPU_INFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False  # not known: rather slow than wrong
    return "avx512_vnni" in flags or "avx_vnni" in flags


@functools.cache
def processor_name() -> str:
    """Model of the processor, as far as the system tells: enough to tell two machines apart."""
    try:
        lines = CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    known = {name.strip(): value.strip() for name, value in fields.items()}
    parts = [known[name] for name in ("model name", "cpu family", "model") if name in known]
    return " ".join(parts) or platform.processor() or platform.machine()
