"""A problem's policy gradient is never whole in memory: peak resident memory of a fresh process."""

from __future__ import annotations

from test_peak_memory import pytestmark as reads_proc
from test_peak_memory import run
from tolerances import POLICY_MEMORY_SLACK

pytestmark = reads_proc

MODEL = """
import numpy as np
import transformers
from datasets import Dataset
from hf_curate.batches import Rollout
from hf_curate.gradients.inner import policy_products
from hf_curate.gradients.parameters import parameters_of
from hf_curate.models import prepared
from hf_curate.scorers.gradalign import mean_gradient
from hf_curate.scorers.groups import Group

class Tokenizer:
    def __len__(self):
        return 2_000

torch.manual_seed(0)
config = transformers.LlamaConfig(
    vocab_size=2_000, hidden_size=512, intermediate_size=768, num_hidden_layers=10, num_attention_heads=4,
    num_key_value_heads=4, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    tie_word_embeddings=True,
)
live = transformers.LlamaForCausalLM(config).eval()
model = prepared(live, Tokenizer(), torch.device("cpu"))
parameters = parameters_of(live, "all")
ids = torch.randint(3, 2_000, (3, 8)).tolist()
rollouts = [Rollout([*ids[0][:3], *row[3 : 5 + k]], 3) for k, row in enumerate(ids)]
advantages = [0.5, 0.0, -0.5]
direction = {name: torch.randn_like(p) for name, p in parameters.items()}
sizes = {
    "gradient": sum(4 * p.numel() for p in parameters.values()),
    "largest": max(4 * p.numel() for p in parameters.values()),
}

def of_products():
    found = policy_products(model, rollouts, advantages, parameters, direction)
    assert found.squared_norm > 0 and len(found.per_rollout) == 3 and not found.cancels

def of_norm():
    assert policy_products(model, rollouts, advantages, parameters, None).squared_norm > 0

def of_pieces():
    found = policy_products(model, rollouts, advantages, parameters, direction, batch_tokens=8)
    assert found.squared_norm > 0 and len(found.per_rollout) == 3

class Scorer:
    # two problems of the same rollouts
    kind = "mean"

    @property
    def reader(self):
        return self

    def token_limit(self, model):
        return 8192

    def reads(self, names):
        return names

    def read(self, row):
        return Group(rollouts, np.array([1.0, 0.5, 0.0]))

def of_mean():
    mean, counts = mean_gradient(Scorer(), model, parameters, Dataset.from_dict({"row": [0, 1]}))
    assert mean.norm > 0 and counts["with_signal"] == 2

def of_plain_autograd():
    logits = live(input_ids=torch.tensor([rollouts[0].input_ids]), use_cache=False).logits
    torch.autograd.grad(logits.logsumexp(dim=-1).sum(), list(live.parameters()))

short = [Rollout(r.input_ids, r.start) for r in rollouts[:2]]
policy_products(model, short, [0.5, -0.5], parameters, direction)  # threads, BLAS, the route: before the measurement
"""


WORK = ("products", "norm", "pieces", "mean", "plain_autograd")
MEASURED = "print(json.dumps({'sizes': sizes, **{name: peak_of(globals()['of_' + name]) for name in sys.argv[1:]}}))"


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
    assert extra["pieces"] < gradient + little, (
        extra
    )  # more tokens than a forward may have: one sum, until it is whole
