"""A problem's policy gradient is never whole in memory: peak resident memory of a fresh process."""

from __future__ import annotations

from test_peak_memory import pytestmark as reads_proc
from test_peak_memory import run
from tolerances import POLICY_MEMORY_SLACK

pytestmark = reads_proc

MODEL = """
import ctypes
import gc
import numpy as np
ctypes.CDLL(None).mallopt(-3, 100_000)  # M_MMAP_THRESHOLD: activations go back at once too, not gradients alone
import transformers
from datasets import Dataset
from hf_curate.batches import Rollout
from hf_curate.gradients.inner import policy_products
from hf_curate.gradients.parameters import parameters_of
from hf_curate.models import prepared
from hf_curate.scorers.fitting import Counts, mean_gradient
from hf_curate.scorers.groups import Group

class Tokenizer:
    def __len__(self):
        return 2_000

def made(layers):
    config = transformers.LlamaConfig(
        vocab_size=2_000, hidden_size=512, intermediate_size=768, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        tie_word_embeddings=True,
    )
    live = transformers.LlamaForCausalLM(config).eval()
    model, parameters = prepared(live, Tokenizer(), torch.device("cpu")), parameters_of(live, "all")
    direction = {name: torch.randn_like(p) for name, p in parameters.items()}
    return {"live": live, "model": model, "parameters": parameters, "direction": direction}

torch.manual_seed(0)
small, large = made(2), made(10)
globals().update(large)
ids = torch.randint(3, 2_000, (3, 8)).tolist()
rollouts = [Rollout([*ids[0][:3], *row[3 : 5 + k]], 3) for k, row in enumerate(ids)]
advantages = [0.5, 0.0, -0.5]
wide = [Rollout(row, 3) for row in torch.randint(3, 2_000, (8, 24)).tolist()]  # 192 tokens
signs = [0.5, -0.5] * 4
sizes = {
    "gradient": sum(4 * p.numel() for p in parameters.values()),
    "largest": max(4 * p.numel() for p in parameters.values()),
}

def settled(work):
    # a library's code that runs for the first time is read from its file, and counts as resident too
    globals().update(small)
    work()
    globals().update(large)
    # what was freed goes back, so that the measurement cannot reuse it unseen
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return peak_of(work)

def of_products():
    found = policy_products(model, rollouts, advantages, parameters, direction)
    assert found.squared_norm > 0 and len(found.per_rollout) == 3 and not found.cancels

def of_norm():
    assert policy_products(model, rollouts, advantages, parameters, None).squared_norm > 0

def of_wide(batch_tokens, per_rollout=True):
    found = policy_products(
        model, wide, signs, parameters, direction, per_rollout=per_rollout, batch_tokens=batch_tokens
    )
    assert found.squared_norm > 0 and (not per_rollout or len(found.per_rollout) == 8)

def of_whole():
    of_wide(192)

def of_recomputed():
    of_wide(24)

def of_recomputed_without_rollouts():
    of_wide(24, per_rollout=False)

def of_passes():
    of_wide(6)

class Reader:
    def __init__(self, rollouts, rewards):
        self.rollouts, self.rewards = rollouts, np.array(rewards)

    def reads(self, names):
        return names

    def read(self, row):
        return Group(self.rollouts, self.rewards)

def of_mean(rollouts=rollouts, rewards=(1.0, 0.5, 0.0), batch_tokens=8192):
    # of two problems of the same rollouts
    counts, rows = Counts(0.5), Dataset.from_dict({"row": [0, 1]})
    mean = mean_gradient(Reader(rollouts, rewards), model, parameters, rows, "mean", counts, batch_tokens)
    assert mean.norm > 0 and counts.with_signal == 2

def of_recomputed_mean():
    of_mean(wide, [1.0, 0.0] * 4, 24)

def of_plain_autograd():
    logits = live(input_ids=torch.tensor([rollouts[0].input_ids]), use_cache=False).logits
    torch.autograd.grad(logits.logsumexp(dim=-1).sum(), list(live.parameters()))

short = [Rollout(r.input_ids, r.start) for r in rollouts[:2]]
policy_products(model, short, [0.5, -0.5], parameters, direction)  # threads, BLAS, the route: before the measurement
"""


WORK = (
    "products",
    "norm",
    "whole",
    "recomputed",
    "recomputed_without_rollouts",
    "passes",
    "mean",
    "recomputed_mean",
    "plain_autograd",
)
MEASURED = "print(json.dumps({'sizes': sizes, **{name: settled(globals()['of_' + name]) for name in sys.argv[1:]}}))"


def test_only_sums_of_gradients_are_ever_whole_in_memory() -> None:
    found = run(MODEL + MEASURED, *WORK)
    gradient, largest = found["sizes"]["gradient"], found["sizes"]["largest"]
    little = largest + POLICY_MEMORY_SLACK
    assert 2 * little < gradient  # else the bounds below would say nothing
    extra = {name: found[name]["extra"] for name in WORK}
    assert extra["plain_autograd"] > 0.9 * gradient, extra  # what is measured would show a gradient
    assert extra["products"] < little, extra
    assert extra["norm"] < little, extra
    assert 0.9 * gradient < extra["mean"] < gradient + little, extra
    # 192 tokens, 8 times what may be kept: beside the model and the direction no gradient and no block but one
    assert extra["whole"] > 1.5 * little, extra  # what all blocks keep would show
    assert extra["recomputed"] < little, extra
    assert extra["recomputed_without_rollouts"] < little, extra
    assert extra["recomputed_mean"] < gradient + little, extra
    # 32 times what may be kept: several passes, and one sum until it is whole
    assert 0.9 * gradient < extra["passes"] < gradient + little, extra
