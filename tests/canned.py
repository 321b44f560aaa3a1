"""`ragctl` as a program, `python -m tests.canned COMMAND ...`, with models that need no catalogue and no waiting."""

from dataclasses import replace

from ragctl import deploy, deploy_plan, teardown
from ragctl.cli import main
from ragctl.config import Experiment
from tests.deployments import resolve

real = deploy_plan.tools


def tools(experiment: Experiment) -> deploy_plan.Tools:
    """The real ones, but for the catalogue."""
    return replace(real(experiment), resolve=resolve)


if __name__ == "__main__":
    deploy_plan.tools = tools
    deploy.POLL_S = teardown.POLL_S = 0.01
    main()
