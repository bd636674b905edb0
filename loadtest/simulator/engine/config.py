"""The configuration of an engine. Knows no requests and no time."""

from dataclasses import dataclass

from loadtest.model.step_time import PredictedStepTime


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """The parameters that decide the capacity of an engine, under vLLM's names.

    A step lasts `step_base_s + step_per_seq_s * sequences + step_per_kv_token_s * KV tokens read +
    prefill_per_token_s * prefill tokens`, and `step_eager_s` longer if it has too many tokens for a CUDA
    graph. If `step_time` is given, it says the step's time instead. This time is multiplied by a lognormal
    random factor with mean 1 and coefficient of variation `jitter_cv`.

    Raises ValueError in three cases. vLLM would refuse to start in the first two:

    - The token budget `max_num_batched_tokens` is below `max_num_seqs`.
    - The KV-cache pool cannot hold one request of `max_model_len`.
    - `step_base_s` is not above 0.
    """

    num_gpu_blocks: int
    """Blocks including the null block, as vLLM counts; requests share one block less."""
    max_model_len: int
    step_base_s: float
    step_per_seq_s: float = 0.0
    step_per_kv_token_s: float = 0.0
    prefill_per_token_s: float = 0.0
    step_time: PredictedStepTime | None = None
    """The step time of a GPU, which is no sum of such terms; None: it is their sum. If it is given,
    `step_base_s` is only the time of a step with one short sequence."""
    block_size: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    enable_prefix_caching: bool = True
    async_scheduling: bool = False
    """Whether a step is scheduled when the one before it starts, so that ended requests hold their blocks for
    one more step."""
    max_num_queued_reqs: int | None = None
    """Limit of all unfinished requests, even running ones, despite vLLM's name; None: no limit."""
    max_num_queued_tokens: int | None = None
    """Requests are rejected while prompts without a first token have this many tokens or more; None: no
    limit."""
    max_cudagraph_capture_size: int | None = None
    """Most tokens of a step that runs as a captured CUDA graph; None: no step is too large for one."""
    step_eager_s: float = 0.0
    """What a step of more tokens takes longer, because its kernels are launched one by one."""
    jitter_cv: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least max_num_seqs "
                f"({self.max_num_seqs}), or running requests would not all get a token each step."
            )
        if self.max_model_len > self.pool_tokens:
            raise ValueError(
                f"The pool holds {self.pool_tokens} tokens, less than one request of max_model_len "
                f"({self.max_model_len}): lower max_model_len or raise num_gpu_blocks."
            )
        if not self.step_base_s > 0:
            raise ValueError("step_base_s must be above 0: every step takes time.")

    @property
    def pool_tokens(self) -> int:
        """Number of tokens that the KV-cache pool can hold, without the null block, which vLLM keeps for
        itself."""
        return (self.num_gpu_blocks - 1) * self.block_size
