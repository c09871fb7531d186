"""One of the processes of a training of several: what it selected and trained on, as JSON in a folder."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import online  # noqa: E402
import rollouts  # noqa: E402
import torch  # noqa: E402

from hf_curate.integrations.trl import SelectedGRPOTrainer  # noqa: E402

torch.set_num_threads(1)


class Sees(SelectedGRPOTrainer):
    trained: list[list[str]] = []  # noqa: RUF012

    def _calculate_rewards(self, inputs: Any, *others: Any) -> Any:
        self.trained.append([row["prompt"] for row in inputs])
        return super()._calculate_rewards(inputs, *others)


def main(folder: Path) -> None:
    one = Sees(
        online.policy(),
        online.reward,
        online.settings(folder / "run", per_device_train_batch_size=4),
        processing_class=rollouts.tokenizer(),
        selector=online.selector(),
    )
    one.train()
    told = {"used": one.selector.used, "history": one.selector.history, "trained": one.trained}
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(told), encoding="utf-8")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
