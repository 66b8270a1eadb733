"""``unike serve``: a model with its edits as a service, behind OpenAI's API."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unike.cli import _shared as shared
from unike.cli._options import takes
from unike.cli._store import HERE, Blobs, Where, opened
from unike.core.errors import UnikeError
from unike.core.extras import bring, needing
from unike.core.options import parse_settings, read_options
from unike.serve.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import ASGIApp

    from unike.serve.keys import Keys

ORDER = 85


@takes(Settings)
def serve(
    given: Mapping[str, Any],
    where: Where = HERE,
    blobs: Blobs = None,
    model: shared.Model = "mini",
    host: Annotated[str, typer.Option(help="Where to listen; for other machines only with keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="On which port; 0 takes a free one.")] = 8000,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            help="Keys of those who may ask, one a line; behind it its sets, if not all.",
            show_default="those in UNIKE_API_KEYS",
        ),
    ] = None,
    admin_key_file: Annotated[
        Path | None,
        typer.Option(
            help="Keys of those who may change edits; in the same way.", show_default="those in UNIKE_ADMIN_KEYS"
        ),
    ] = None,
    no_auth: Annotated[bool, typer.Option("--no-auth", help="Listen for other machines without keys.")] = False,
    replicas: Annotated[
        int, typer.Option(min=1, help="So many processes with a model each, by Ray; on its cluster, if there is one.")
    ] = 1,
    editor: Annotated[str, typer.Option(help="The method of edits that are made over the API.")] = "unike",
    studio: Annotated[
        bool | None,
        typer.Option(
            "--studio/--no-studio",
            help="Also serve a page for people, at /studio: ask, correct, compare, revoke.",
            show_default="on if gradio is installed, and without --replicas",
        ),
    ] = None,
    settings: shared.Settings = None,
    device: shared.Device = "auto",
    dtype: shared.Dtype = "auto",
    quantize: shared.Quantize = None,
    template: shared.Template = None,
    trust_remote_code: shared.Trust = False,
    as_json: shared.Json = False,
) -> None:
    """Serve a model under the edits of a store: OpenAI's chat API, and a REST API for the edits."""
    loading = (model, device, dtype, quantize, trust_remote_code, template)
    allowed = Settings(**read_options(Settings, given))
    check_folders(allowed)
    with shared.working("starting"):
        with needing("serve"):
            from unike.serve import keys, run
        known = keys.read_keys(api_key_file, admin_key_file)
        run.check_host(host, known, no_auth)
        shared.check_loading(device, dtype, quantize, template)
        method = make_method(editor, parse_settings(settings or []))
        with_studio = has_studio(studio, replicas)
        listening = run.listen(host, port)
    allowed = replace(allowed, name=allowed.name or model, any_host=bool(known) or no_auth)
    with listening, run.ending_cleanly():
        starting = one_process if replicas == 1 else partial(several, replicas)
        served = starting(loading, (where, blobs), method, allowed, known, with_studio)
        with served as app, run.ending_cleanly(), run.logging_to_stderr():
            run.serve(app, listening, lambda: say(run.address_of(listening), allowed.name, with_studio, as_json))


def check_folders(settings: Settings) -> None:
    """Refuse what could serve no picture, or no answer.

    Raises:
        UnikeError: With the option.
    """
    for folder in settings.image_folders:
        if not folder.is_dir():
            raise UnikeError(f"{folder} is no folder; --allow-images names one with pictures")
    if settings.max_new_tokens > settings.most_tokens:
        raise UnikeError(
            f"--max-new-tokens {settings.max_new_tokens} is more than --most-tokens {settings.most_tokens}; raise that"
        )


def make_method(editor: str, settings: dict[str, Any]) -> Callable[[], Any]:
    """What makes the editor, once its name and settings are known to be right.

    Raises:
        UnikeError: They are not.
    """
    from unike import api
    from unike.core import registry

    registry.editors.get(editor).config_class.parse(settings)
    return lambda: api.make_editor(editor, **settings)


def has_studio(wanted: bool | None, replicas: int) -> bool:
    """Whether there is a studio; where nobody says, there is if it can be.

    Raises:
        UnikeError: It is wanted, and gradio is not installed; or there are several replicas, and who has signed in at
            one of them is not known to the others.
    """
    if wanted is None:
        return replicas == 1 and find_spec("gradio") is not None
    if wanted and replicas > 1:
        raise UnikeError("the studio is served by one process; leave --studio or --replicas out")
    if wanted:
        with needing("studio"):
            import_module("gradio")
    return wanted


def make_app(
    loading: shared.Loading,
    place: tuple[str, str | None],
    method: Callable[[], Any],
    settings: Settings,
    keys: "Keys",
    studio: bool,
) -> "FastAPI":
    """The service, its model loaded and its store open."""
    from unike.serve.app import create_app
    from unike.serve.engine import Engine

    store = opened(*place, make=True)
    backbone, _ = shared.load(*loading)
    engine = Engine(backbone, max_batch=settings.max_batch, max_waiting=settings.max_waiting)
    return create_app(engine, store, settings, editor=method(), keys=keys, studio=studio)


@contextmanager
def one_process(*args: Any) -> "Iterator[ASGIApp]":
    """The service in this process; arguments are those of `make_app`."""
    yield make_app(*args)


@contextmanager
def several(
    size: int,
    loading: shared.Loading,
    place: tuple[str, str | None],
    method: Callable[[], Any],
    settings: Settings,
    keys: "Keys",
    studio: bool,
) -> "Iterator[ASGIApp]":
    """The door before so many processes with the service; other arguments are those of `make_app`.

    Raises:
        UnikeError: Ray is not installed, or what `replicated` says.
    """
    with needing("ray"):
        import_module("ray.serve")  # what is next imports ray alone
        from unike.serve.replicas import replicated
    opened(*place, make=True).close()  # one that cannot be opened is known before anything starts
    shared.build(loading[0])  # once, and not in each of them
    # Replicas have working folders of their own.
    loading = (from_anywhere(loading[0]), *loading[1:])
    place = (absolute(place[0]), None if place[1] is None else absolute(place[1]))
    settings = replace(settings, image_folders=tuple(folder.absolute() for folder in settings.image_folders))
    make = partial(make_app, loading, place, method, settings, keys, studio)
    with shared.working(f"starting {size} replicas"), ExitStack() as stack:
        door = stack.enter_context(replicated(make, size, settings, keys, device=loading[1], store=place[0]))
        rest = stack.pop_all()
    with rest:
        yield door


def from_anywhere(name: str) -> str:
    """A model's name that means the same in every working folder: of a path, the absolute one."""
    return absolute(name) if Path(name).exists() else name


def absolute(place: str) -> str:
    """A folder, which need not be there yet, or an address, so that it means the same in every working folder."""
    return place if "://" in place else str(Path(place).absolute())


def say(address: str, model: str, studio: bool, as_json: bool) -> None:
    """That it is ready, and where."""
    page = address.removesuffix("/v1") + "/studio"
    if as_json:
        shared.print_json({"url": address, "model": model, "studio": page if studio else None})
    else:
        for_people = f"; for people: {page}" if studio else ""
        typer.echo(f"serving {model} at {address}{for_people}; stop with Ctrl-C")
        if not studio and find_spec("gradio") is None:
            typer.echo(f"there is no page for people without gradio; bring it with: {bring('studio')}", err=True)
