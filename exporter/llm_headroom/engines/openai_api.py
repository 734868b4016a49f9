"""What the engines' HTTP front ends have in common: the paths that cause inference, status codes, model lists."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

from msgspec import Meta, Struct

from llm_headroom import schema
from llm_headroom.engines.answers import Text, Whole
from llm_headroom.engines.rules import Absent, Document, Fact

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

INFERENCE_PATHS: Final = (
    r"/(v\d+|api|inference)/(?!models|loads|version|ps|tags|show).*"
    r"|/(generate|encode|embed|classify|score|rerank|pooling|invocations)"
)
"""Paths whose responses say how inference goes; health checks, model lists and metrics are not among them."""

SLOWLY: Final = 300.0
"""Seconds between fetches of what changes only when an engine restarts."""
MOST_NAMED: Final = 1000
"""Models of one engine that are looked at: more than the label cap lets through."""
RUNTIME: Final = {
    "*_created": "times of creation of other series",
    "python_*": "the server's Python runtime",
    "process_*": "the server's process",
}
"""Families that any Python server may expose, passed over."""


def status_class(code: str) -> str:
    """`503` → `5xx`; a class stays as it is."""
    return f"{code[0]}xx" if code[:1].isdigit() else code


def whole(value: object) -> int | None:
    """A number of JSON that is whole and not negative; None if it is anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


class Model(Struct):
    """A model that is served; `parent` is that of an adapter."""

    id: Text
    max_model_len: Whole | None = None
    parent: Text | None = None
    owned_by: Text | None = None


class Models(Struct):
    """The list of models."""

    data: Annotated[list[Model], Meta(max_length=10_000)]


MODELS: Final = Document(
    key="models",
    path="/v1/models",
    every=SLOWLY,
    optional=True,
    tolerated=(401, 403, 404, 501),
    form=Models,
    read=lambda answer: answer.data,
)
"""The model list of the OpenAI API, LoRA adapters (those with a parent) included."""


def base_models(documents: Mapping[str, Any]) -> list[Model]:
    """The models that `/v1/models` lists, without adapters."""
    models = documents.get("models")
    if models is None or isinstance(models, Absent):
        return []
    return [model for model in models if not model.parent][:MOST_NAMED]


def model_facts(documents: Mapping[str, Any]) -> Iterator[Fact]:
    """That those models are loaded, and the context of each."""
    for model in base_models(documents):
        labels = {"model": model.id}
        yield Fact(schema.MODEL_LOADED, labels, 1.0, "/v1/models")
        if model.max_model_len is not None:
            yield Fact(schema.MODEL_CONTEXT, labels, float(model.max_model_len), "/v1/models max_model_len")


def only_model(documents: Mapping[str, Any]) -> str:
    """The model's name, if the engine serves just one."""
    names = {model.id for model in base_models(documents)}
    return names.pop() if len(names) == 1 else ""


def present(documents: Mapping[str, Any], key: str) -> Any:  # noqa: ANN401 - JSON
    """What has been read of a document, None if it has not come or the engine does not serve it."""
    document = documents.get(key)
    return None if isinstance(document, Absent) else document
