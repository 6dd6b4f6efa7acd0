"""The store's SQL, and how rows become the dataclasses of `job`: to be read and reviewed as one.

Statements are built once, so that SQLAlchemy compiles each once. A job is always read together
with its files in a single statement: both are of the same moment, in one round trip.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, cast

from sqlalchemy import (
    JSON,
    BindParameter,
    Column,
    ColumnElement,
    Row,
    RowMapping,
    Select,
    Table,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal_column,
    null,
    select,
    union,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from polypod.jobs.job import Asset, FileRef, Job, JobError, KeptStage, StageRun
from polypod.jobs.store.tables import (
    FILES,
    GIVEN,
    assets,
    cards,
    deliveries,
    image_files,
    images,
    jobs,
    kept_files,
    kept_stages,
    meta,
)

OUTPUTS = ("output", "manifest", "derived")
INPUTS = (GIVEN, "input")


class rows_as_json(FunctionElement[Any]):
    """Aggregates rows of the given columns to a JSON list of lists."""

    type = JSON()
    inherit_cache = True
    name = "rows_as_json"


@compiles(rows_as_json, "sqlite")
def _sqlite_rows(element: rows_as_json, compiler: SQLCompiler, **kw: Any) -> str:
    return f"json_group_array(json_array({compiler.process(element.clauses, **kw)}))"


@compiles(rows_as_json, "postgresql")
def _postgresql_rows(element: rows_as_json, compiler: SQLCompiler, **kw: Any) -> str:
    columns = compiler.process(element.clauses, **kw)
    return f"coalesce(json_agg(json_build_array({columns})), '[]'::json)"


def _files_of(table: Table, key: ColumnElement[Any], owner: ColumnElement[Any], *columns: str):
    names = (*columns, "digest", "size", "media_type", "filename")
    rows = select(rows_as_json(*(table.c[name] for name in names)))
    return rows.where(key == owner).scalar_subquery().label("files")


_job_files = _files_of(assets, assets.c.job, jobs.c.seq, "id", "kind", "name", "stage")
_hidden = ("results_at", "inputs_at", "router")
_behind_log = ("log", "trace", "relayed")
"""Not in a page of the history: to read them is to read whole logs."""
_columns = [column for column in jobs.c if column.name not in _hidden]
_unfinished = jobs.c.status.in_(("queued", "processing"))
_this_job = jobs.c.id == bindparam("job_id")
_fence = [
    _this_job,
    jobs.c.attempt == bindparam("this_attempt"),
    jobs.c.router == bindparam("this_router"),
]
_this_attempt = [*_fence, _unfinished]

# --- jobs

JOB = select(*_columns, _job_files)
JOB_BY_ID = JOB.where(_this_job)
JOBS_BY_IDS = JOB.where(jobs.c.id.in_(bindparam("job_ids", expanding=True)))
JOB_BY_KEY = JOB.where(
    jobs.c.owner == bindparam("owner"),
    jobs.c.model == bindparam("model"),
    jobs.c.idempotency_key == bindparam("key"),
    jobs.c.idempotency_key != "",  # lets the planner use the partial index
)
UNFINISHED_JOBS = JOB.where(_unfinished).order_by(jobs.c.seq)
UNFINISHED_PAGE = UNFINISHED_JOBS.where(jobs.c.seq > bindparam("after")).limit(bindparam("most"))
HISTORY = (
    select(*(column for column in _columns if column.name not in _behind_log), _job_files)
    .order_by(jobs.c.seq.desc())
    .limit(bindparam("most"))
)
QUEUED = select(func.count()).select_from(
    select(jobs.c.seq).where(jobs.c.status == "queued").limit(bindparam("most")).subquery()
)
QUEUED_OF = select(func.count()).where(
    jobs.c.owner == bindparam("owner"),
    jobs.c.status == literal_column("'queued'"),  # lets the planner use the partial index
)

INSERT_JOB = insert(jobs)
START_JOB = (
    update(jobs)
    .where(*_fence, jobs.c.status == "queued")
    .values(status="processing", started_at=bindparam("at"))
)
COUNT_WORKER_DEATH = (
    update(jobs).where(*_this_attempt).values(worker_deaths=jobs.c.worker_deaths + 1)
)
COUNT_SERVER_DEATH = (
    update(jobs).where(*_this_attempt).values(server_deaths=jobs.c.server_deaths + 1)
)
_ENDED = (
    *("status", "started_at", "finished_at", "results_at", "inputs_at"),
    *("error", "stages", "facts", "log"),
)
_end = update(jobs).values({name: bindparam(f"new_{name}") for name in _ENDED})
FINISH_JOB = _end.where(*_this_attempt).returning(jobs.c.seq)
END_JOB = _end.where(_this_job, jobs.c.attempt == bindparam("this_attempt"), _unfinished).returning(
    jobs.c.seq
)
CANCEL_JOB = _end.where(_this_job, _unfinished).returning(jobs.c.seq)
TAKE_OVER = (
    update(jobs)
    .where(_unfinished)
    .values(
        attempt=jobs.c.attempt + 1,
        server_deaths=jobs.c.server_deaths + case((jobs.c.status == "processing", 1), else_=0),
        status="queued",
        started_at=null(),
        router=bindparam("new_router"),
    )
)
PUT_BACK = update(jobs).where(*_this_attempt).values(status="queued", started_at=null())
FORGIVE_SERVER_DEATHS = update(jobs).where(_this_job).values(server_deaths=0)
FORGIVE_ONE_DEATH = (
    update(jobs)
    .where(jobs.c.id.in_(bindparam("job_ids", expanding=True)), _unfinished)
    .where(jobs.c.server_deaths > 0)
    .values(server_deaths=jobs.c.server_deaths - 1)
)
IS_THIS_END = select(jobs.c.seq).where(
    _this_job,
    jobs.c.attempt == bindparam("this_attempt"),
    jobs.c.status == bindparam("new_status"),
    jobs.c.finished_at == bindparam("new_finished_at"),
)
JOB_IN_ATTEMPT = select(jobs.c.seq, jobs.c.status, jobs.c.server_deaths).where(*_fence)
SEQ = select(jobs.c.seq).where(_this_job)
SET_FACTS = update(jobs).where(_this_job).values(facts=bindparam("new_facts"))
DELETE_JOB = delete(jobs).where(_this_job, jobs.c.finished_at.is_not(None))
DELETE_RESULTS = delete(assets).where(
    assets.c.job == bindparam("seq"), assets.c.kind.in_(("output", "manifest"))
)


def _upsert(table: Table, *key: str) -> Mapping[str, Any]:
    """Per dialect: a row with the same key gets the new file."""
    new = ("stage", "digest", "size", "media_type", "filename")
    made: dict[str, Any] = {}
    for name, dialect in (("sqlite", sqlite), ("postgresql", postgresql)):
        statement = dialect.insert(table)
        made[name] = statement.on_conflict_do_update(
            index_elements=list(key), set_={column: statement.excluded[column] for column in new}
        )
    return made


INSERT_ASSETS = insert(assets)
PUT_ASSETS = _upsert(assets, "job", "kind", "name")

# --- kept stages

KEPT_STAGE = select(
    kept_stages, _files_of(kept_files, kept_files.c.kept, kept_stages.c.id, "name")
).where(kept_stages.c.key == bindparam("key"))
STAGE_KEYS = select(kept_stages.c.key)
KEPT_ID = select(kept_stages.c.id).where(kept_stages.c.key == bindparam("key"))
INSERT_KEPT_STAGE = insert(kept_stages)
INSERT_KEPT_FILES = insert(kept_files)
TOUCH_KEPT_STAGE = (
    update(kept_stages)
    .where(kept_stages.c.key == bindparam("this_key"))
    .values(used_at=bindparam("at"))
)
_newest = (
    func.row_number()
    .over(
        partition_by=[kept_stages.c[name] for name in ("model", "stage", "device", "preset")],
        order_by=kept_stages.c.id.desc(),
    )
    .label("newest")
)
_timed = select(
    *(kept_stages.c[name] for name in ("id", "model", "stage", "device", "preset", "seconds")),
    _newest,
).subquery()
STAGE_SECONDS = (
    select(*(_timed.c[name] for name in ("model", "stage", "device", "preset", "seconds")))
    .where(_timed.c.newest <= bindparam("most"))
    .order_by(_timed.c.id.desc())
)

# --- images

STORE_ID = select(meta.c.value).where(meta.c.key == "store_id")
INSERT_IMAGE = insert(images)
INSERT_IMAGE_FILES = insert(image_files)
IMAGE = select(
    images.c.owner, _files_of(image_files, image_files.c.image, images.c.id, "name")
).where(images.c.id == bindparam("image_id"))

# --- cards

CARDS = select(cards.c.card).order_by(cards.c.model)
FORGET_CARD = delete(cards).where(cards.c.model == bindparam("of_model"))
INSERT_CARD = insert(cards)

# --- webhooks

WEBHOOK_SECRET = select(meta.c.value).where(meta.c.key == "webhook_secret")
_delivery = select(
    jobs.c.id.label("job_id"), *(c for c in deliveries.c if c is not deliveries.c.job)
).join_from(deliveries, jobs, deliveries.c.job == jobs.c.seq)
_hosts: BindParameter[Any] = bindparam("hosts", expanding=True)
_this_delivery = [
    deliveries.c.id == bindparam("delivery"),
    deliveries.c.attempts == bindparam("seen"),
    deliveries.c.done_at.is_(None),
]
DELIVERY = _delivery.where(jobs.c.id == bindparam("job_id"))
DUE_DELIVERIES = (
    _delivery.where(deliveries.c.next_at <= bindparam("now"), deliveries.c.host.not_in(_hosts))
    .order_by(deliveries.c.next_at)
    .limit(bindparam("most"))
)
NEXT_DELIVERY = select(func.min(deliveries.c.next_at)).where(deliveries.c.next_at.is_not(None))
INSERT_DELIVERY = insert(deliveries).values(event="", attempts=0, last_error="")
MAKE_DELIVERY_DUE = (
    update(deliveries)
    .where(deliveries.c.job == bindparam("seq"))
    .values(event=bindparam("new_event"), event_at=bindparam("at"), next_at=bindparam("at"))
)
CLAIM_DELIVERY = (
    update(deliveries)
    .where(*_this_delivery)
    .values(attempts=deliveries.c.attempts + 1, next_at=bindparam("until"))
)
NOTE_DELIVERY = (
    update(deliveries)
    .where(*_this_delivery)
    .values(
        next_at=bindparam("new_next_at"),
        done_at=bindparam("new_done_at"),
        last_status=bindparam("new_status"),
        last_error=bindparam("new_error"),
    )
)

# --- what the blobs on the disk are needed for

_digests: BindParameter[Any] = bindparam("digests", expanding=True)
HELD = union(*(select(table.c.digest).where(table.c.digest.in_(_digests)) for table in FILES))
_every_file = union(*(select(table.c.digest, table.c.size) for table in FILES)).subquery()
TOTAL_BYTES = select(func.coalesce(func.sum(_every_file.c.size), 0))

# --- retention: what may go, oldest first, a batch at a time

_before: BindParameter[Any] = bindparam("before")
_most: BindParameter[Any] = bindparam("most")


def _oldest(time: Column[Any], *columns: ColumnElement[Any]) -> Select[Any]:
    return select(*columns, time).where(time < _before).order_by(time).limit(_most)


OLD_RESULTS = _oldest(jobs.c.results_at, jobs.c.seq, jobs.c.id)
EVICTED_RESULTS = OLD_RESULTS.where(~jobs.c.relayed)
"""A router deletes its job here when it has the results; until then they stay."""
OLD_INPUTS = _oldest(jobs.c.inputs_at, jobs.c.seq, jobs.c.id)
OLD_JOBS = _oldest(jobs.c.finished_at, jobs.c.seq, jobs.c.id)
OLD_STAGES = _oldest(kept_stages.c.used_at, kept_stages.c.id, kept_stages.c.key)
OLD_IMAGES = _oldest(images.c.created_at, images.c.id, images.c.id.label("key"))

_ids: BindParameter[Any] = bindparam("ids", expanding=True)
FORGET_OUTPUTS = delete(assets).where(assets.c.job.in_(_ids), assets.c.kind.in_(OUTPUTS))
FORGET_INPUTS = delete(assets).where(assets.c.job.in_(_ids), assets.c.kind.in_(INPUTS))
MARK_OUTPUTS_GONE = update(jobs).where(jobs.c.seq.in_(_ids)).values(results_at=null())
MARK_INPUTS_GONE = update(jobs).where(jobs.c.seq.in_(_ids)).values(inputs_at=null())
RELAYED_FILES = (
    select(jobs.c.seq, assets.c.digest)
    .join(assets, assets.c.job == jobs.c.seq)
    .where(jobs.c.relayed)
)
FORGET_JOBS = delete(jobs).where(jobs.c.seq.in_(_ids))
FORGET_STAGES = delete(kept_stages).where(kept_stages.c.id.in_(_ids))
FORGET_IMAGES = delete(images).where(images.c.id.in_(_ids))

_id: BindParameter[Any] = bindparam("id")
OUTPUT_FILES = select(assets.c.digest, assets.c.size).where(
    assets.c.job == _id, assets.c.kind.in_(OUTPUTS)
)
INPUT_FILES = select(assets.c.digest, assets.c.size).where(
    assets.c.job == _id, assets.c.kind.in_(INPUTS)
)
IMAGE_FILES = select(image_files.c.digest, image_files.c.size).where(image_files.c.image == _id)
KEPT_FILES = select(kept_files.c.digest, kept_files.c.size).where(kept_files.c.kept == _id)


# --- rows to dataclasses and back


def job_row(job: Job) -> dict[str, Any]:
    """A new job's row."""
    return {
        "id": job.id,
        "model": job.model,
        "owner": job.owner,
        "status": job.status,
        "priority": job.priority,
        "attempt": job.attempt,
        "worker_deaths": job.worker_deaths,
        "server_deaths": job.server_deaths,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "card": job.card,
        "until": job.until,
        "parent": job.parent,
        "idempotency_key": job.idempotency_key,
        "request_digest": job.request_digest,
        "trace": job.trace,
        "relayed": job.relayed,
        "params": dict(job.params),
        **_outcome(job),
    }


def finish_row(job: Job) -> dict[str, Any]:
    """The parameters of `FINISH_JOB`."""
    row = {
        "status": job.status,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "results_at": job.finished_at if any(a.kind in OUTPUTS for a in job.assets) else None,
        "inputs_at": job.finished_at,
        **_outcome(job),
    }
    return {"job_id": job.id, "this_attempt": job.attempt} | {
        f"new_{name}": value for name, value in row.items()
    }


def _outcome(job: Job) -> dict[str, Any]:
    return {
        "error": None if job.error is None else asdict(job.error),
        "stages": [asdict(run) for run in job.stages],
        "facts": dict(job.facts),
        "log": storable(job.log),
    }


def file_row(file: FileRef) -> dict[str, Any]:
    return {
        "digest": file.digest,
        "size": file.size,
        "media_type": file.media_type,
        "filename": storable(file.filename),
    }


def asset_rows(seq: int, assets: Iterable[Asset]) -> list[dict[str, Any]]:
    return [
        {"job": seq, "kind": a.kind, "name": a.name, "stage": a.stage, **file_row(a.file)}
        for a in assets
    ]


def given_rows(seq: int, inputs: Mapping[str, FileRef]) -> list[dict[str, Any]]:
    return [
        {"job": seq, "kind": GIVEN, "name": name, "stage": "", **file_row(file)}
        for name, file in inputs.items()
    ]


def job_of(row: RowMapping) -> Job:
    """A job from a row of `JOB` or, without what is `_behind_log`, of `HISTORY`."""
    found: dict[str, Any] = dict(row)
    files = sorted(cast(list[list[Any]], found.pop("files")))
    error, stages = found.pop("error"), found.pop("stages")
    return Job(
        inputs={name: FileRef(*file) for _, kind, name, _, *file in files if kind == GIVEN},
        assets=tuple(
            Asset(name, FileRef(*file), kind, stage)
            for _, kind, name, stage, *file in files
            if kind != GIVEN
        ),
        error=None if error is None else JobError(**error),
        stages=tuple(StageRun(**run) for run in stages),
        **found,
    )


def kept_row(kept: KeptStage) -> dict[str, Any]:
    run = kept.run
    return {
        "key": kept.key,
        "model": kept.model,
        "stage": kept.stage,
        "owner": kept.owner,
        "preset": kept.preset,
        "device": run.device,
        "seconds": run.seconds,
        "peak_memory": run.peak_memory,
        "peak_gpu_memory": run.peak_gpu_memory,
        "created_at": kept.created_at,
        "used_at": kept.created_at,
    }


def kept_of(row: Row[Any]) -> KeptStage:
    run = StageRun(row.stage, row.seconds, row.device, False, row.peak_memory, row.peak_gpu_memory)
    return KeptStage(
        key=row.key,
        model=row.model,
        stage=row.stage,
        owner=row.owner,
        files=named_files(row.files),
        run=run,
        preset=row.preset,
        created_at=row.created_at,
    )


def named_files(files: list[list[Any]]) -> dict[str, FileRef]:
    return {name: FileRef(*file) for name, *file in sorted(files)}


def storable(text: str) -> str:
    """What upstream prints may hold NUL (not for PostgreSQL) and half characters (not UTF-8)."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()
