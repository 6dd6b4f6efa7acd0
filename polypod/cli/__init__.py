"""The command line: `polypod generate photo.png`. Here is what it takes; what it does is beside.

Each command imports what it needs when it runs, so that help and completion come at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

import polypod
from polypod.cli import building

app = typer.Typer(
    name="polypod",
    help="A photograph in, a 3D model out.",
    epilog="First time? Try: [bold]polypod run photo.jpg[/bold]",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

SERVICE = "Service"

Url = Annotated[
    str,
    typer.Option(
        "--url", envvar="POLYPOD_URL", help="Where the service is.", rich_help_panel=SERVICE
    ),
]
ApiKey = Annotated[
    str,
    typer.Option(
        envvar="POLYPOD_API_KEY",
        help="Better set in the environment, where other users cannot see it.",
        show_default=False,
        rich_help_panel=SERVICE,
    ),
]
Out = Annotated[
    Path,
    typer.Option(
        "--out",
        "-o",
        file_okay=False,
        writable=True,
        help="Folder for the results; made if it is not there.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="For programs: one JSON document.")]
Format = Annotated[
    Literal["glb", "ply", "obj", "stl", "usdz"] | None,
    typer.Option(
        "--format",
        "-f",
        metavar="FORMAT",
        help="Save as glb, ply, obj, stl or usdz.",
        show_default="the job's own",
    ),
]
Param = Annotated[
    list[str] | None,
    typer.Option(
        "--param", "-p", metavar="KEY=VALUE", help="A parameter of the model; values are JSON."
    ),
]
Preset = Annotated[str, typer.Option(help="A preset of the model, such as draft or high.")]
Port = Annotated[
    int | None, typer.Option(min=0, max=65535, help="0: any free one.", show_default="8000")
]
JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id.", show_default=False)]

LOCAL = "http://127.0.0.1:8000"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"polypod {polypod.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show and exit.")
    ] = False,
) -> None:
    if reconfigure := getattr(sys.stdout, "reconfigure", None):
        reconfigure(errors="backslashreplace")  # a file's name need not be text: as on stderr


@app.command(
    rich_help_panel="Make 3D models",
    epilog="Example: [bold]polypod generate cat.jpg dog.jpg --preset high -o models[/bold]",
)
def generate(
    photos: Annotated[
        list[str], typer.Argument(metavar="PHOTO", help="Files or URLs.", show_default=False)
    ],
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="May be left out where one is served. Given several times, each photo goes to "
            "each of them.",
            show_default=False,
        ),
    ] = None,
    out: Out = Path("out"),
    preset: Preset = "",
    param: Param = None,
    format: Format = None,
    until: Annotated[str, typer.Option(metavar="STAGE", help="Stop after this stage.")] = "",
    input: Annotated[
        list[str] | None,
        typer.Option("--input", "-i", metavar="NAME=FILE", help="A further input, such as a mask."),
    ] = None,
    detach: Annotated[bool, typer.Option(help="Submit, print the job's id, and leave.")] = False,
    as_json: AsJson = False,
    url: Url = LOCAL,
    api_key: ApiKey = "",
) -> None:
    """Turn photographs into 3D models and save them, each with four views and a manifest.

    Saves OUT/NAME.glb, OUT/NAME_view_0.png to _3 (front, right, back, left)
    and OUT/NAME_manifest.json, where NAME is the photo's (and the model's,
    where several are compared).

    Ends with 0: all saved; 1: not all; 2: wrong usage; 130: interrupted.
    """
    from polypod.cli.batch import Order
    from polypod.cli.generate import run_order
    from polypod.cli.given import inputs, parameters

    order = Order(
        photos=tuple(photos),
        models=tuple(dict.fromkeys(model or [""])),
        params=parameters(param or [], preset),
        inputs=inputs(input or []),
        until=until,
        format=format or "",
        out=out,
        detach=detach,
        as_json=as_json,
    )
    raise typer.Exit(run_order(order, url, api_key))


@app.command(rich_help_panel="Make 3D models", epilog="Example: [bold]polypod run photo.jpg[/bold]")
def run(
    photo: Annotated[
        str, typer.Argument(metavar="PHOTO", help="A file or URL.", show_default=False)
    ],
    model: Annotated[
        str, typer.Option("--model", "-m", envvar="POLYPOD_MODEL", help="One of services/.")
    ] = "inflate",
    out: Out = Path("out"),
    preset: Preset = "",
    param: Param = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Keep jobs here; else they go with the service.", show_default=False),
    ] = None,
    skip_stage1: Annotated[
        bool,
        typer.Option(
            "--skip-stage1",
            "--skip_stage1",
            help="Take the first stage from an earlier run with this picture and --data.",
        ),
    ] = False,
) -> None:
    """Try it: start a service here, turn one photo into a 3D model, stop the service."""
    from polypod.cli.given import parameters
    from polypod.cli.tryout import try_out

    params = parameters(param or [], preset)
    raise typer.Exit(try_out(photo, model, out, params, data, skip_stage1))


@app.command(rich_help_panel="Run a service", epilog="Example: [bold]polypod serve inflate[/bold]")
def serve(
    model: Annotated[
        str, typer.Argument(envvar="POLYPOD_MODEL", help="One of services/.")
    ] = "inflate",
    host: Annotated[
        str, typer.Option(help="Any but loopback needs POLYPOD_API_KEYS.", show_default="127.0.0.1")
    ] = "",
    port: Port = None,
    data: Annotated[
        Path | None, typer.Option(help="Where jobs are kept.", show_default="data")
    ] = None,
) -> None:
    """Serve a model until Ctrl-C. What else can be set: [bold]polypod settings[/bold]."""
    from polypod.cli.server import serve_here

    serve_here(model, host, port, data)


@app.command(rich_help_panel="Run a service", epilog="Example: [bold]polypod up --port 9000[/bold]")
def up(
    host: Annotated[
        str, typer.Option(help="Any but loopback needs API keys.", show_default="127.0.0.1")
    ] = "",
    port: Port = None,
    data: Annotated[
        Path | None, typer.Option(help="Where jobs and results are kept.", show_default="data")
    ] = None,
    fleet: Annotated[
        Path | None,
        typer.Option(help="Which endpoints to run.", show_default="deploy/fleet.yaml"),
    ] = None,
) -> None:
    """Start everything, until Ctrl-C: the router, and an endpoint for each model of the fleet."""
    from polypod.cli.up import run_up

    raise typer.Exit(run_up(host, port, data, fleet))


endpoints = typer.Typer(rich_markup_mode="rich")
app.add_typer(endpoints, name="endpoints", rich_help_panel="Run a service")


@endpoints.callback(
    invoke_without_command=True,
    epilog="Example: [bold]polypod endpoints add http://10.0.0.7:8000[/bold]",
)
def _endpoints(
    context: typer.Context, as_json: AsJson = False, url: Url = LOCAL, api_key: ApiKey = ""
) -> None:
    """List a router's endpoints, add one, or remove one."""
    from polypod.cli.up import show_endpoints

    if context.invoked_subcommand is None:
        raise typer.Exit(show_endpoints(as_json, url, api_key))


@endpoints.command("add", epilog="Example: [bold]polypod endpoints add http://10.0.0.7:8000[/bold]")
def _add_endpoint(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="Where it is: http://...")],
    name: Annotated[str, typer.Option(help="What to call it.", show_default="its address")] = "",
    endpoint_key: Annotated[
        str,
        typer.Option(envvar="POLYPOD_ENDPOINT_KEY", help="Its own API key.", show_default=False),
    ] = "",
    as_json: AsJson = False,
    url: Url = LOCAL,
    api_key: ApiKey = "",
) -> None:
    """Let the router send jobs to a service that runs already."""
    from polypod.cli.up import add_endpoint

    raise typer.Exit(add_endpoint(address, name, endpoint_key, as_json, url, api_key))


@endpoints.command("remove", epilog="Example: [bold]polypod endpoints remove inflate-1[/bold]")
def _remove_endpoint(
    name: Annotated[str, typer.Argument(metavar="ID", help="As the list shows it.")],
    as_json: AsJson = False,
    url: Url = LOCAL,
    api_key: ApiKey = "",
) -> None:
    """Send it no more jobs, and forget it once it has done those that it has."""
    from polypod.cli.up import remove_endpoint

    raise typer.Exit(remove_endpoint(name, as_json, url, api_key))


@app.command(
    rich_help_panel="Look after jobs", epilog="Example: [bold]polypod job ID --follow[/bold]"
)
def job(
    job_id: JobId,
    follow: Annotated[
        bool, typer.Option("--follow", "-F", help="Until it ends, with its log.")
    ] = False,
    as_json: AsJson = False,
    url: Url = LOCAL,
    api_key: ApiKey = "",
) -> None:
    """Show a job. Exit status 1 if it failed or was cancelled."""
    from polypod.cli.show import show_job

    raise typer.Exit(show_job(job_id, follow, as_json, url, api_key))


@app.command(
    rich_help_panel="Look after jobs", epilog="Example: [bold]polypod jobs --status failed[/bold]"
)
def jobs(
    model: Annotated[str, typer.Option("--model", "-m", help="Only of this model.")] = "",
    status: Annotated[
        str, typer.Option(help="queued, processing, completed, failed or cancelled.")
    ] = "",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many.")] = 20,
    as_json: AsJson = False,
    url: Url = LOCAL,
    api_key: ApiKey = "",
) -> None:
    """List jobs, newest first."""
    from polypod.cli.show import show_jobs

    raise typer.Exit(show_jobs(model, status, limit, as_json, url, api_key))


@app.command(
    rich_help_panel="Look after jobs",
    epilog="Example: [bold]polypod download ID -o models --name cat[/bold]",
)
def download(
    job_id: JobId,
    out: Out = Path("out"),
    name: Annotated[
        str, typer.Option(help="Name of the files.", show_default="start of the id")
    ] = "",
    format: Format = None,
    asset: Annotated[str, typer.Option(help="Only this file, such as view_0.png.")] = "",
    as_json: AsJson = False,
    url: Url = LOCAL,
    api_key: ApiKey = "",
) -> None:
    """Save what a job made, like generate does; waits for it if it is not done."""
    from polypod.cli.batch import Order
    from polypod.cli.generate import run_download

    order = Order(photos=(name or job_id[:8],), format=format or "", out=out, as_json=as_json)
    raise typer.Exit(run_download(order, job_id, asset, url, api_key))


@app.command(rich_help_panel="Look after jobs", epilog="Example: [bold]polypod cancel ID[/bold]")
def cancel(
    job_ids: Annotated[
        list[str], typer.Argument(metavar="ID", help="Ids of jobs.", show_default=False)
    ],
    as_json: AsJson = False,
    url: Url = LOCAL,
    api_key: ApiKey = "",
) -> None:
    """Cancel jobs that are queued or running. Those that have ended stay as they are."""
    from polypod.cli.show import cancel_jobs

    raise typer.Exit(cancel_jobs(job_ids, as_json, url, api_key))


@app.command(rich_help_panel="Run a service", epilog="Example: [bold]polypod health[/bold]")
def health(as_json: AsJson = False, url: Url = LOCAL, api_key: ApiKey = "") -> None:
    """Show how a service is. Exit status 1 if it is not healthy."""
    from polypod.cli.show import show_health

    raise typer.Exit(show_health(as_json, url, api_key))


@app.command(
    rich_help_panel="Make 3D models", epilog="Example: [bold]polypod models inflate[/bold]"
)
def models(
    name: Annotated[str, typer.Argument(help="One model, with its parameters.")] = "",
    as_json: AsJson = False,
    url: Url = LOCAL,
    api_key: ApiKey = "",
) -> None:
    """List the models of a service, or show what one takes."""
    from polypod.cli.show import show_models

    raise typer.Exit(show_models(name, as_json, url, api_key))


webhooks = typer.Typer(help="Try out receivers of webhooks.", rich_markup_mode="rich")
app.add_typer(webhooks, name="webhooks", rich_help_panel="Run a service")

ServiceData = Annotated[
    Path | None, typer.Option("--data", help="The service's data folder.", show_default="data")
]


@webhooks.command(
    "test", epilog="Example: [bold]polypod webhooks test https://example.com/hook[/bold]"
)
def _test_webhook(
    receiver: Annotated[str, typer.Argument(metavar="URL", help="Where it listens.")],
    data: ServiceData = None,
    as_json: AsJson = False,
) -> None:
    """Send a signed sample and show what comes back. Exit status 1 if it was not taken."""
    from polypod.cli.webhooks import send_sample

    raise typer.Exit(send_sample(receiver, data, as_json))


@webhooks.command("secret", epilog="Example: [bold]polypod webhooks secret --data data[/bold]")
def _webhook_secret(data: ServiceData = None) -> None:
    """Print the secret that signs webhooks: POLYPOD_WEBHOOK_SECRET, else the service's own."""
    from polypod.cli.webhooks import show_secret

    raise typer.Exit(show_secret(data))


keys = typer.Typer(
    help="Make, list and revoke API keys; a running server notices within 2 s.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
app.add_typer(keys, name="keys", rich_help_panel="Run a service")

KeysData = Annotated[
    Path | None, typer.Option("--data", help="The server's data folder.", show_default="data")
]


@keys.command("create", epilog="Example: [bold]polypod keys create web --per-minute 20[/bold]")
def _create_key(
    name: Annotated[str, typer.Argument(help="What it is for, or whose.", show_default=False)],
    scope: Annotated[
        list[str],
        typer.Option("--scope", "-s", help="generate, read, dispatch or admin; several times."),
    ] = ["generate", "read"],  # noqa: B006  what typer takes for a default
    per_minute: Annotated[
        int | None, typer.Option(min=1, help="Most jobs submitted in a minute.")
    ] = None,
    most_queued: Annotated[int | None, typer.Option(min=1, help="Most jobs that wait.")] = None,
    data: KeysData = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it: it cannot be shown again."""
    from polypod.cli.keys import create_key

    raise typer.Exit(create_key(name, scope, per_minute, most_queued, data, as_json))


@keys.command("list", epilog="Example: [bold]polypod keys list[/bold]")
def _list_keys(data: KeysData = None, as_json: AsJson = False) -> None:
    """List all keys that were ever made, with scopes, limits and last use."""
    from polypod.cli.keys import list_keys

    raise typer.Exit(list_keys(data, as_json))


@keys.command("revoke", epilog="Example: [bold]polypod keys revoke web[/bold]")
def _revoke_key(
    which: Annotated[str, typer.Argument(metavar="ID", help="A key's id, or its name.")],
    data: KeysData = None,
    as_json: AsJson = False,
) -> None:
    """End a key for good. Jobs that it submitted go on."""
    from polypod.cli.keys import revoke_key

    raise typer.Exit(revoke_key(which, data, as_json))


@keys.command("audit", epilog="Example: [bold]polypod keys audit -n 20[/bold]")
def _audit(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many.")] = 50,
    data: KeysData = None,
    as_json: AsJson = False,
) -> None:
    """Show who administrated what, newest first."""
    from polypod.cli.keys import show_audit

    raise typer.Exit(show_audit(limit, data, as_json))


@app.command(
    rich_help_panel="Run a service", epilog="Example: [bold]PORT=9000 polypod settings[/bold]"
)
def settings(
    model: Annotated[
        str, typer.Argument(envvar="POLYPOD_MODEL", help="One of services/, for its own as well.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """List every setting of a service: environment variable, value here, default, meaning."""
    from polypod.cli.settings import show_settings

    raise typer.Exit(show_settings(model, as_json))


building.register(app)
