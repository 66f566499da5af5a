"""One library of the training benchmark, in a process of its own: see training.py, which starts it.

    python benchmarks/training_peers.py LIBRARY BACKBONE --train FILE.npz --held-out FILE.npz --sizes JSON

On a line `epoch` of standard input, the script trains one epoch and prints its seconds; on `auc`, it prints the AUC on
the held-out rows. It is not a module of a package, because the peers' environment holds nothing of this project.

Every model is the library's own, trained by the library's own loop over the library's own loader: no dropout, no
penalties, embeddings drawn from a normal distribution of standard deviation 0.01, Adam at 0.001.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

TABLES = {
    "item": "item",
    "categories": "categories",
    "brand": "brand",
    "hist_item": "item",
    "hist_categories": "categories",
    "hist_brand": "brand",
}
"""Field -> embedding table. The categories of a history are one flat sequence, whose mean is the same. Each extra field
has a table of its own.
"""

INITIAL_STDDEV = 0.01
LEARNING_RATE = 0.001


def deepctr(backbone: str, train: str, held_out: str, sizes: dict[str, Any]) -> tuple[Callable, Callable]:
    """DeepCTR-Torch: its models as they are, trained by `fit`."""
    import torch
    from deepctr_torch import models
    from deepctr_torch.inputs import SparseFeat, VarLenSparseFeat

    dim, mlp, lengths = sizes["embedding_dim"], tuple(sizes["mlp"]), sizes["lengths"]
    tables = TABLES | {name: name for name in sizes["extra_fields"]}
    # DIN masks by a length and attends only to single values: so to item and brand; the categories are averaged.
    attended = ("item", "brand") if backbone == "din" else ()

    def column(name: str) -> Any:
        table = tables[name]
        one = SparseFeat(name, sizes["rows"][table], embedding_dim=dim, embedding_name=table)
        if name not in lengths:
            return one
        length = "hist_length" if name.removeprefix("hist_") in attended else None
        return VarLenSparseFeat(one, maxlen=lengths[name], combiner="mean", length_name=length)

    columns = [column(name) for name in tables]
    no_penalty = {"l2_reg_embedding": 0, "init_std": INITIAL_STDDEV, "dnn_hidden_units": mlp}
    if backbone == "deepfm":
        model = models.DeepFM(columns, columns, l2_reg_linear=0, **no_penalty)
    elif backbone == "xdeepfm":
        cin = {"cin_layer_size": sizes["cin_widths"], "cin_split_half": False, "cin_activation": "linear"}
        model = models.xDeepFM(columns, columns, l2_reg_linear=0, **cin, **no_penalty)
        # The library counts tables instead of fields, but some fields share a table.
        from deepctr_torch.layers import CIN

        model.cin = CIN(len(tables), sizes["cin_widths"], "linear", False)
    elif backbone == "autoint":
        heads = {"att_layer_num": sizes["attention_layers"], "att_head_num": sizes["attention_heads"]}
        model = models.AutoInt([], columns, **heads, **{**no_penalty, "dnn_hidden_units": ()})
        model.dnn_linear = torch.nn.Linear(len(tables) * dim, 1, bias=False)  # as above
    elif backbone in ("dcn", "dcnv2"):
        kind = {"dcn": "vector", "dcnv2": "matrix"}[backbone]
        cross = {"cross_num": sizes["cross_layers"], "cross_parameterization": kind, "l2_reg_cross": 0}
        model = models.DCN([], columns, l2_reg_linear=0, **cross, **no_penalty)
    else:
        attention = {"att_hidden_size": tuple(sizes["activation_unit"]), "att_activation": "prelu"}
        model = models.DIN(columns, list(attended), dnn_activation="prelu", **attention, **no_penalty)
    model.compile(torch.optim.Adam(model.parameters(), lr=LEARNING_RATE), "binary_crossentropy")

    rows, valid = dict(np.load(train)), dict(np.load(held_out))
    return (
        lambda: model.fit(rows, rows["label"], batch_size=sizes["batch_size"], epochs=1, verbose=0),
        lambda: roc_auc_score(valid["label"], model.predict(valid, batch_size=4096)),
    )


def fuxictr(backbone: str, train: str, held_out: str, sizes: dict[str, Any]) -> tuple[Callable, Callable]:
    """FuxiCTR: its models are not in the wheel; these are its layers, composed as its model zoo composes them."""
    import torch
    from fuxictr.features import FeatureMap
    from fuxictr.pytorch import layers
    from fuxictr.pytorch.dataloaders.npz_dataloader import NpzDataLoader
    from fuxictr.pytorch.models import BaseModel

    dim, mlp, lengths = sizes["embedding_dim"], list(sizes["mlp"]), sizes["lengths"]
    tables = TABLES | {name: name for name in sizes["extra_fields"]}
    attended = ("item", "brand") if backbone == "din" else ()
    feature_map = FeatureMap("market", data_dir="")
    for name, table in tables.items():
        spec = {"type": "categorical", "source": "", "vocab_size": sizes["rows"][table], "padding_idx": 0}
        if name in lengths:
            spec |= {"type": "sequence", "max_len": lengths[name]}
            if name.removeprefix("hist_") not in attended:
                spec["feature_encoder"] = "layers.MaskedAveragePooling()"
        if table != name:
            spec["share_embedding"] = table
        feature_map.features[name] = spec
    feature_map.labels = ["label"]
    feature_map.num_fields = len(tables)
    feature_map.set_column_index()
    width = len(tables) * dim
    initializer = f"partial(nn.init.normal_, std={INITIAL_STDDEV})"

    def tower(inputs: int, output: int | None, activation: str = "ReLU") -> torch.nn.Module:
        return layers.MLP_Block(inputs, mlp, activation, output_dim=output)

    class Model(BaseModel):
        def __init__(self) -> None:
            # Without eval_steps, `fit` would evaluate; the benchmark evaluates outside of the time that it measures.
            super().__init__(feature_map, verbose=0, model_root="", metrics=["AUC"], eval_steps=sys.maxsize)
            self.embed = layers.FeatureEmbeddingDict(feature_map, dim, embedding_initializer=initializer)
            self.build()
            self.compile("adam", "binary_crossentropy", LEARNING_RATE)
            self.reset_parameters()

        def build(self) -> None:
            raise NotImplementedError

        def logit(self, inputs: dict, embedded: dict) -> torch.Tensor:
            raise NotImplementedError

        def forward(self, inputs: dict) -> dict:
            columns = self.get_inputs(inputs)
            return {"y_pred": self.output_activation(self.logit(columns, self.embed(columns)))}

        def load_weights(self, checkpoint: str) -> None:
            """Does nothing: `fit` calls it at its end to load the best checkpoint, but here the weights stay."""

    class DeepFM(Model):
        def build(self) -> None:
            self.fm = layers.FactorizationMachine(feature_map)
            self.deep = tower(width, 1)

        def logit(self, inputs: dict, embedded: dict) -> torch.Tensor:
            fields = self.embed.dict2tensor(embedded)
            return self.fm(inputs, fields) + self.deep(fields.flatten(1))

    class XDeepFM(Model):
        def build(self) -> None:
            self.first_order = layers.LogisticRegression(feature_map, use_bias=False)
            self.cin = layers.CompressedInteractionNet(len(tables), list(sizes["cin_widths"]))
            self.deep = tower(width, 1)

        def logit(self, inputs: dict, embedded: dict) -> torch.Tensor:
            fields = self.embed.dict2tensor(embedded)
            return self.first_order(inputs) + self.cin(fields) + self.deep(fields.flatten(1))

    class SelfAttention(torch.nn.Module):
        """AutoInt's layer, which is in the model zoo and not in the wheel, made of the wheel's attention."""

        def __init__(self) -> None:
            super().__init__()
            self.projections = torch.nn.ModuleList(torch.nn.Linear(dim, dim, bias=False) for _ in range(3))
            self.attention = layers.ScaledDotProductAttention()

        def forward(self, fields: torch.Tensor) -> torch.Tensor:
            heads = (len(fields), len(tables), sizes["attention_heads"], -1)
            split = (projection(fields).view(heads).transpose(1, 2) for projection in self.projections)
            attended, _ = self.attention(*split)
            return (attended.transpose(1, 2).flatten(2) + fields).relu()

    class AutoInt(Model):
        def build(self) -> None:
            self.attention = torch.nn.Sequential(*(SelfAttention() for _ in range(sizes["attention_layers"])))
            self.last = torch.nn.Linear(width, 1)

        def logit(self, inputs: dict, embedded: dict) -> torch.Tensor:
            return self.last(self.attention(self.embed.dict2tensor(embedded)).flatten(1))

    class DCN(Model):
        cross_net = layers.CrossNet

        def build(self) -> None:
            self.cross = self.cross_net(width, sizes["cross_layers"])
            self.deep = tower(width, None)
            self.last = torch.nn.Linear(width + mlp[-1], 1)

        def logit(self, inputs: dict, embedded: dict) -> torch.Tensor:
            fields = self.embed.dict2tensor(embedded).flatten(1)
            return self.last(torch.cat([self.cross(fields), self.deep(fields)], dim=-1))

    class DCNv2(DCN):
        cross_net = layers.CrossNetV2

    class DIN(Model):
        def build(self) -> None:
            units = list(sizes["activation_unit"])
            self.attention = layers.DIN_Attention(len(attended) * dim, units, ["PReLU"] * len(units))
            self.deep = tower(width, 1, "PReLU")

        def logit(self, inputs: dict, embedded: dict) -> torch.Tensor:
            candidate = torch.cat([embedded[name] for name in attended], dim=-1)
            history = torch.cat([embedded[f"hist_{name}"] for name in attended], dim=-1)
            interest = self.attention(candidate, history, inputs["hist_item"] != 0)
            others = [embedded[name] for name in ("categories", "hist_categories", *sizes["extra_fields"])]
            return self.deep(torch.cat([candidate, interest, *others], dim=-1))

    models = {"deepfm": DeepFM, "xdeepfm": XDeepFM, "autoint": AutoInt, "dcn": DCN, "dcnv2": DCNv2, "din": DIN}
    model = models[backbone]()
    rows = NpzDataLoader(feature_map, train, batch_size=sizes["batch_size"], shuffle=True)
    valid = NpzDataLoader(feature_map, held_out, batch_size=4096)
    labels = np.load(held_out)["label"]
    return lambda: model.fit(rows, epochs=1), lambda: roc_auc_score(labels, model.predict(valid))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", choices=("deepctr", "fuxictr"))
    parser.add_argument("backbone")
    parser.add_argument("--train", required=True)
    parser.add_argument("--held-out", required=True)
    parser.add_argument("--sizes", type=json.loads, required=True)
    arguments = parser.parse_args()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what the libraries print goes to the log
    make = {"deepctr": deepctr, "fuxictr": fuxictr}[arguments.library]
    epoch, auc = make(arguments.backbone, arguments.train, arguments.held_out, arguments.sizes)
    for line in sys.stdin:
        if line == "auc\n":
            answer = float(auc())
        else:
            start = time.perf_counter()
            epoch()
            answer = time.perf_counter() - start
        print(answer, file=answers, flush=True)


if __name__ == "__main__":
    main()
