"""`reopold doctor` as a flow, to be scheduled: what died without a word is found within the hour.

from flows.reconcile import reconcile
reconcile.serve(name="hourly", cron="0 * * * *", parameters={"fix": True})
"""

from __future__ import annotations

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from tasks.alive import alive
from tasks.doctor import Examination, examine
from tasks.findings import Finding


class FaultsLeft(Exception):
    """Faults that a person has to look at; the artifact `reconcile` of the flow run lists them."""


@flow(name="reconcile", flow_run_name="fix={fix}")
def reconcile(fix: bool = False, quick: bool = False) -> Examination:
    """Examine the home of this process, and mend what can be mended if `fix`.

    The flow run fails if faults are left: that is what Prefect shows in red, and what an automation
    can send a message about. Each run is on its own, so a fault that stays is reported each time.

    Raises:
        FaultsLeft: see the artifact.
    """
    with alive():
        found = examine(fix=fix, quick=quick)
        create_markdown_artifact(_markdown(found), key="reconcile", description=found.home)
    if found.left:
        said = "; ".join(f"{each.check} {each.where}: {each.found}" for each in found.left)
        raise FaultsLeft(f"{len(found.left)} faults are left: {said}")
    return found


def _markdown(found: Examination) -> str:
    rows = [
        "| check | where | found | mend | |",
        "|---|---|---|---|---|",
        *map(_row, found.findings),
    ]
    return "\n".join([*(rows if found.findings else []), "", "```", found.summary, "```"])


def _row(finding: Finding) -> str:
    cells = [finding.check, finding.where, finding.found, finding.mend, finding.outcome]
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
