"""Time of one training step, predicted from configuration, device and layout (report sections 3.1-3.3).

A chunk is one micro-batch of one sequence on one pipeline stage. Its compute is GEMMs in the Linears' format, attention, and work
bound by memory (elementwise kernels, sums of gradients); its communication is the all-to-all of every MoE layer, and gathers where
parameters are shared out. The schedule's simulator turns chunk times into a step.

Four constants are fitted, all on the published profile of a forward-backward pair (H800, 4 MoE layers a chunk, EP64, 4,096 tokens):
GEMMs 74.5 ms, attention 20.1 ms, the rest of the compute stream's 118.2 ms, and 129.0 ms for the pair. The network runs at its
line rate, which is what the published DeepEP kernels reach (51 and 50 GB/s of 50 at EP64). Step time and phases are predictions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from rorqual.config import ModelConfig
from rorqual.planner.communication import all_to_all_seconds, fsdp_bytes, link, pipeline_bytes, zero1_bytes
from rorqual.planner.flops import attention_flops_per_token
from rorqual.planner.hardware import Hardware
from rorqual.planner.layout import Layout, stage_layers
from rorqual.planner.params import attention_weights, count
from rorqual.planner.schedule import SCHEDULES, Op, Schedule, Step
from rorqual.planner.simulate import Simulation, simulate

GEMM_EFFICIENCY: Final = 0.390
"""Fitted: 57.5 TFLOP of Linears in 74.5 ms are 39 % of the FP8 peak. A device without FP8 gets the BF16 share below."""
ATTENTION_EFFICIENCY: Final = 0.556
"""Fitted: 2.75 TFLOP of causal attention forward in 5.0 ms are 55.6 % of the BF16 peak (its backward took 15.1 ms, three times as
long); also used for the BF16 GEMMs of head and eh_proj."""
ELEMENTWISE_BYTES: Final = 570.0
"""Fitted: memory traffic of all other kernels but the sums of gradients, bytes per token, layer and unit of hidden_size, forward and
backward."""
PAIR_OVERHEAD: Final = 1.091
"""Fitted: an overlapped pair over the longer of its compute and communication, 129.0 / 118.2 ms."""
LOGIT_BYTES: Final = 16.0
"""Bytes moved per logit: FP32 written and read forward, read and written backward."""
GRADIENT_BYTES: Final = 8.0
"""Bytes moved per parameter held and micro-batch, to add its gradient to the FP32 sum: read and written."""
COMMUNICATION_SMS: Final = 20 / 132
"""Report section 3.2.2: the share of the chip that communication occupies while it overlaps; alone, compute has all of it."""
_SIMULATED: Final = 8  # micro-batches per rank that are simulated one by one
OPTIMIZER_BYTES: Final = 30.0
"""Bytes moved per parameter held: gradient 4 read, master 4 and two BF16 moments 4 read and written, BF16 weight 2 written, and
the same gradient once more for its norm."""


@dataclass(frozen=True)
class Chunk:
    """Seconds of one micro-batch on one stage, on the compute units that communication leaves (112 of 132): forward, backward (weight
    gradients included), weight gradients alone; the all-to-all of one direction; gathers and reductions of shared-out parameters."""

    forward: float
    backward: float
    weight: float
    communication: float
    gather_forward: float = 0.0
    gather_backward: float = 0.0


@dataclass(frozen=True)
class StepTime:
    """A predicted optimiser step. `phases` are seconds of the rank that works longest, and its bubble; they sum to `seconds`."""

    seconds: float
    optimizer: float
    phases: dict[str, float]
    exposed_communication: float
    """Seconds in which that rank's compute waits for all-to-alls."""
    chunks: tuple[Chunk, ...]
    simulation: Simulation

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"step_seconds": self.seconds, "phases": dict(self.phases), "exposed_communication": self.exposed_communication}


def chunks_of(config: ModelConfig, device: Hardware, layout: Layout, seq_len: int, mtp: bool = True) -> tuple[Chunk, ...]:
    """Costs of every stage."""
    held = stage_parameters(config, layout, mtp)
    return tuple(_chunk(config, device, layout, stage, seq_len, mtp, held[stage]) for stage in range(layout.num_stages))


def chunk(config: ModelConfig, device: Hardware, layout: Layout, stage: int, seq_len: int, mtp: bool) -> Chunk:
    """Costs of one stage."""
    return _chunk(config, device, layout, stage, seq_len, mtp, stage_parameters(config, layout, mtp)[stage])


def _chunk(config: ModelConfig, device: Hardware, layout: Layout, stage: int, seq_len: int, mtp: bool, held: tuple[float, float]) -> Chunk:
    """Costs of one stage that holds `held` (routed-expert parameters, others). The last stage has the head, and the MTP modules with a use of the head each."""
    layers = list(stage_layers(config, layout.num_stages)[stage])
    last = stage == layout.num_stages - 1
    modules = config.num_nextn_predict_layers if mtp and last else 0
    layers += range(config.num_hidden_layers, config.num_hidden_layers + modules)
    parameters = count(config)
    weights = sum(_linear_weights(config, layer) for layer in layers)
    gemm = 2.0 * weights * seq_len / ((GEMM_EFFICIENCY if device.fp8 else ATTENTION_EFFICIENCY) * device.linear_peak)
    attention = attention_flops_per_token(config, seq_len, len(layers)) * seq_len / (ATTENTION_EFFICIENCY * device.bf16)
    plain = (parameters.embedding * (1 + modules) if last else 0) + modules * 2 * config.hidden_size**2
    head = 2.0 * plain * seq_len / (ATTENTION_EFFICIENCY * device.bf16)
    other = ELEMENTWISE_BYTES * config.hidden_size * len(layers) * seq_len / device.memory_bandwidth
    logits = LOGIT_BYTES * config.vocab_size * (1 + modules) * seq_len / device.memory_bandwidth if last else 0.0
    experts, rest = held
    summed = GRADIENT_BYTES * (experts + rest) / device.memory_bandwidth
    moe = sum(config.is_moe(layer) for layer in layers)
    forward = gemm + attention + head + logits / 2 + other / 3
    backward = 2 * (gemm + head) + 3 * attention + logits / 2 + summed + other * 2 / 3  # attention's backward recomputes its scores
    gathers = [0.0, 0.0]
    if layout.zero == 3:
        for shared, ranks in ((experts, layout.replicas), (rest, layout.dp)):
            gathers = [so_far + sent / link(device, ranks) for so_far, sent in zip(gathers, fsdp_bytes(shared, ranks), strict=True)]
    return Chunk(forward, backward, gemm + head + summed, moe * seq_len * all_to_all_seconds(config, layout.ep, device), *gathers)


def _linear_weights(config: ModelConfig, layer: int) -> int:
    """Weights that one token meets in the Linears of a block."""
    d = config.hidden_size
    if not config.is_moe(layer):
        return attention_weights(config) + 3 * d * config.intermediate_size
    return attention_weights(config) + 3 * d * config.moe_intermediate_size * (config.num_experts_per_tok + config.n_shared_experts)


@dataclass(frozen=True)
class _StageCosts:
    """The simulator's view of the chunks.

    Alone, a chunk has all compute units and its all-to-alls are exposed; in a pair the longer of compute and communication counts. Gathers
    of shared-out parameters are fetched ahead, so they count where they take longer than the compute.
    """

    chunks: tuple[Chunk, ...]
    send: float

    def compute(self, op: Op) -> float:
        one = self.chunks[op.stage]
        return {"F": one.forward, "B": one.backward, "I": one.backward - one.weight, "W": one.weight}[op.kind]

    def gather(self, op: Op) -> float:
        one = self.chunks[op.stage]
        return {"F": one.gather_forward, "B": one.gather_backward, "I": one.gather_backward, "W": 0.0}[op.kind]

    def of(self, step: Step) -> float:
        """Seconds of a step."""
        compute, gathered = sum(map(self.compute, step)), sum(map(self.gather, step))
        sent = sum(self.chunks[op.stage].communication for op in step if op.kind != "W")
        if len(step) == 2 and sent:
            return PAIR_OVERHEAD * max(compute, sent + gathered)
        return max(compute * (1 - COMMUNICATION_SMS), gathered) + sent


def training_step(config: ModelConfig, device: Hardware, layout: Layout, seq_len: int, batch_sequences: int, mtp: bool = True) -> StepTime:
    """Predicts one optimiser step of `batch_sequences` sequences; the layout must have passed `layout.check`."""
    micro_batches = batch_sequences // layout.dp
    chunks = chunks_of(config, device, layout, seq_len, mtp)
    send = pipeline_bytes(config, seq_len) / device.scale_out if layout.pp > 1 else 0.0
    costs = _StageCosts(chunks, send)
    simulated = min(micro_batches, _SIMULATED * layout.pp)
    found = simulate(_schedule(layout, simulated), costs)
    phases, exposed = _phases(found, costs)
    seconds = found.seconds
    if simulated < micro_batches:  # beyond the warm-up each further round costs the same
        longer = simulate(_schedule(layout, simulated + 2 * layout.pp), costs)
        rounds = (micro_batches - simulated) / (2 * layout.pp)
        seconds += rounds * (longer.seconds - found.seconds)
        more, more_exposed = _phases(longer, costs)
        phases = {name: value + rounds * (more[name] - value) for name, value in phases.items()}
        exposed += rounds * (more_exposed - exposed)
    phases["optimizer"] = optimizer_seconds(config, device, layout, mtp)
    return StepTime(seconds + phases["optimizer"], phases["optimizer"], phases, exposed, chunks, found)


def least_seconds(config: ModelConfig, device: Hardware, layout: Layout, seq_len: int, batch_sequences: int, mtp: bool = True) -> float:
    """A lower bound of `training_step(...).seconds` without a simulation: the work of the busiest rank at its best, and the update."""
    chunks = chunks_of(config, device, layout, seq_len, mtp)
    alone = 1 - COMMUNICATION_SMS

    def work(one: Chunk) -> float:
        compute = one.forward + one.backward
        hidden = PAIR_OVERHEAD * compute if one.communication else alone * compute
        return min(hidden, alone * compute + 2 * one.communication)

    share = batch_sequences / layout.dp / layout.model_copies
    busiest = max(sum(work(chunks[stage]) for stage in stages) for stages in rank_stages(layout))
    return share * busiest + optimizer_seconds(config, device, layout, mtp)


def _phases(found: Simulation, costs: _StageCosts) -> tuple[dict[str, float], float]:
    """(seconds by phase, seconds of exposed communication) of the rank that works longest."""
    slowest = max(range(len(found.events)), key=lambda rank: found.busy[rank])
    phases = {"1F": 0.0, "1B": 0.0, "1W": 0.0, "1F1B": 0.0}
    exposed = 0.0
    for event in found.events[slowest]:
        kind = "1F1B" if len(event.step) == 2 else {"F": "1F", "W": "1W"}.get(event.step[0].kind, "1B")
        phases[kind] += event.end - event.start
        alone = 1.0 if len(event.step) == 2 else 1 - COMMUNICATION_SMS
        exposed += max(0.0, event.end - event.start - alone * sum(map(costs.compute, event.step)))
    return {**phases, "bubble": found.bubble[slowest]}, exposed


def _schedule(layout: Layout, micro_batches: int) -> Schedule:
    """The layout's schedule; without a pipeline simply one micro-batch after the other."""
    return SCHEDULES[layout.schedule if layout.pp > 1 else "1f1b"](layout.pp, micro_batches)


def optimizer_seconds(config: ModelConfig, device: Hardware, layout: Layout, mtp: bool) -> float:
    """Update of the sharded state and, under ZeRO-1, exchange over data parallelism: gradients reduced in FP32, weights gathered in BF16.

    Experts are replicated dp / ep times, everything else dp times; optimiser state is shared out over the replicas. Where parameters
    themselves are (zero 3), the exchange is part of every micro-batch.
    """
    experts, rest = max(held_parameters(config, layout, mtp), key=sum)
    groups = ((experts, layout.replicas), (rest, layout.dp))
    moved = 0.0 if layout.zero == 3 else sum(zero1_bytes(held, ranks) / link(device, ranks) for held, ranks in groups)
    return moved + OPTIMIZER_BYTES * sum(held / ranks for held, ranks in groups) / device.memory_bandwidth


def stage_parameters(config: ModelConfig, layout: Layout, mtp: bool = True) -> list[tuple[float, float]]:
    """(routed-expert parameters, all others) on a device of each stage of one model copy."""
    parameters = count(config)
    stages = stage_layers(config, layout.num_stages)
    held: list[tuple[float, float]] = []
    for stage, layers in enumerate(stages):
        own = list(layers)
        extra = parameters.embedding if stage == 0 else 0
        if stage == layout.num_stages - 1:
            modules = config.num_nextn_predict_layers if mtp else 0
            own += range(config.num_hidden_layers, config.num_hidden_layers + modules)
            tied_here = 0 if layout.num_stages == 1 else parameters.embedding
            extra += (parameters.head or tied_here) + config.hidden_size + modules * (2 * config.hidden_size**2 + 3 * config.hidden_size)
        moe = sum(config.is_moe(layer) for layer in own)
        experts = moe * config.n_routed_experts * parameters.expert / layout.ep
        dense = (len(own) - moe) * parameters.dense_ffn + moe * (config.n_shared_experts * parameters.expert + parameters.router)
        held.append((experts, dense + len(own) * (parameters.attention + 2 * config.hidden_size) + extra))
    return held


def held_parameters(config: ModelConfig, layout: Layout, mtp: bool = True) -> list[tuple[float, float]]:
    """(routed-expert parameters, all others) on a device of each pipeline rank, both model copies of DualPipe included."""
    held = stage_parameters(config, layout, mtp)
    return [(sum(held[stage][0] for stage in stages), sum(held[stage][1] for stage in stages)) for stages in rank_stages(layout)]


def rank_stages(layout: Layout) -> list[list[int]]:
    """Stages on each rank; DualPipe's second copy comes from the other end."""
    if layout.pp == 1:
        return [list(range(layout.num_stages))]
    if layout.schedule == "dualpipe":
        return [[rank, layout.pp - 1 - rank] for rank in range(layout.pp)]
    if layout.schedule == "dualpipev":
        return [[rank, 2 * layout.pp - 1 - rank] for rank in range(layout.pp)]
    return [[rank] for rank in range(layout.pp)]
