"""Published specifications of accelerators, per JAX device."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device.

    Attributes:
        name: product name.
        flops: peak bfloat16 matrix throughput, FLOP/s.
        memory: bytes.
        bandwidth: of the memory, bytes/s.
        links: to other devices, bytes/s in one direction, all links together; 0: unknown.
        options: arguments of JAX's topology description.
    """

    name: str
    flops: float
    memory: float
    bandwidth: float
    links: float = 0.0
    options: tuple[tuple[str, str], ...] = ()


_GIB = 2**30
_MEGACORE = (("chip_config_name", "megacore"),)  # both cores of a chip as one device
# Google Cloud's pages on v4, v5e, v5p and v6e ("TPU v6e" and so on, table of specifications).
TPUS = {
    "v4": Chip("TPU v4", 275e12, 32 * _GIB, 1228e9, 300e9, _MEGACORE),
    "v5e": Chip("TPU v5e", 197e12, 16 * _GIB, 819e9, 200e9),
    "v5p": Chip("TPU v5p", 459e12, 95 * _GIB, 2765e9, 600e9, _MEGACORE),
    "v6e": Chip("TPU v6e", 918e12, 32 * _GIB, 1638e9, 400e9),
}
"""Generation -> its chip."""
# NVIDIA's data sheets: dense bfloat16, without sparsity; NVLink in one direction.
_GPUS = {
    "A100-SXM4-40GB": Chip("A100 40 GB", 312e12, 40e9, 1555e9, 300e9),
    "A100-SXM4-80GB": Chip("A100 80 GB", 312e12, 80e9, 2039e9, 300e9),
    "A100 80GB PCIe": Chip("A100 80 GB PCIe", 312e12, 80e9, 1935e9),
    "A100-PCIE-40GB": Chip("A100 40 GB PCIe", 312e12, 40e9, 1555e9),
    "H100 80GB HBM3": Chip("H100 SXM", 989e12, 80e9, 3350e9, 450e9),
    "H100 PCIe": Chip("H100 PCIe", 756e12, 80e9, 2000e9),
    "H200 NVL": Chip("H200 NVL", 835e12, 141e9, 4800e9, 450e9),
    "H200": Chip("H200", 989e12, 141e9, 4800e9, 450e9),
}
_KINDS = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p"}
_KINDS |= {"TPU v6 lite": "v6e", "TPU v6e": "v6e"}


def chip_of(kind: str) -> Chip | None:
    """The chip of a JAX `device_kind`; None if unknown, as for CPUs."""
    if kind in _KINDS:
        return TPUS[_KINDS[kind]]
    return next((chip for name, chip in _GPUS.items() if kind.endswith(name)), None)


def peak_flops(chip: Chip | None, dtype: str) -> float | None:
    """Peak matrix throughput in `dtype`, FLOP/s; None if unknown (only bfloat16 is known)."""
    return chip.flops if chip and dtype == "bfloat16" else None
