"""The trainer: takes the steps of a session, and logs, evaluates and saves when it is due."""

import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.console.logs import note
from pipeline.fit.checkpoint.checkpointer import Checkpointer
from pipeline.fit.checkpoint.train_state import RunState, Sums, TrainState
from pipeline.fit.data.loader import StepBatch, StepLoader
from pipeline.fit.data.sampler import BatchSampler
from pipeline.fit.distributed.host_group import HostGroup
from pipeline.fit.distributed.signals import GracefulShutdown
from pipeline.fit.schedule import RunPlan
from pipeline.fit.training.best_model import BestModelTracker
from pipeline.fit.training.evaluate import Evaluator
from pipeline.fit.training.logging import Reporter, end_table
from pipeline.fit.training.samples import EvalSamples, Sample
from pipeline.fit.training.step import PendingStep, StepResult, TrainingStep
from pipeline.fit.training.throughput import ThroughputMeter


class TrainerCallback:
    """Hooks of a run, called in each process; what is not overridden does nothing.

    The names are those of transformers' own. An error raised here ends the run as any other does.
    """

    def on_train_begin(self, trainer: "Trainer") -> None:
        """Everything is built and restored; no step is taken yet."""

    def on_step_begin(self, step: int) -> None:
        """A step begins; counted from 1."""

    def on_step_end(self, step: int, result: StepResult) -> None:
        """A step is done, and nothing is logged, evaluated or saved after it yet."""

    def on_save(self, step: int) -> None:
        """The state after a step is copied, and is being written or is written."""

    def on_write(self, step: int) -> None:
        """The state after a step begins to be written; by a thread of its own."""

    def on_prediction_step(self) -> None:
        """A batch of an evaluation begins, or a token of its sample answers."""


@dataclass(kw_only=True, slots=True)
class Trainer:
    """One process's stay in a run, from the first step that is left to the trained folder.

    ``build_trainer`` makes it; nothing happens before ``train`` is called.
    """

    plan: RunPlan
    train_state: TrainState
    """The model, what trains it, and where the run stands; kept up to date in place."""
    sampler: BatchSampler
    loader: StepLoader
    step: TrainingStep
    evaluators: Sequence[Evaluator]
    """Of the eval split, where there is one, and of each folder of ``--eval-data-path``."""
    samples: Sequence[EvalSamples]
    """Of each of these, with ``--eval-samples``."""
    best: BestModelTracker
    checkpointer: Checkpointer
    meter: ThroughputMeter
    reporter: Reporter
    stop: GracefulShutdown
    hosts: HostGroup
    """The run's processes, for an evaluation to agree on whether to stop."""
    run_metadata: dict[str, Any]
    """What stands in ``run.json``."""
    callback: TrainerCallback

    @property
    def model(self) -> torch.nn.Module:
        """With its loss, as the processes train it: wrapped or sharded."""
        return self.train_state.model

    @property
    def state(self) -> RunState:
        """Where the run stands; kept up to date in place."""
        return self.train_state.progress

    def train(self) -> signal.Signals | None:
        """Take the steps that are left.

        Returns:
            None after the last step; before it, the signal that stopped the run, which is saved.

        Raises:
            ModelError: Training diverged.
            OutputError: A checkpoint could not be written.
        """
        with self.checkpointer, self.reporter:
            self.model.train()
            self.callback.on_train_begin(self)
            with self.stop:
                stop = self._take_steps()
                self.checkpointer.wait()
            if stop is not None:
                self._say_how_to_resume(stop)
                return stop
            self._log_summary()
        return None

    def save_pretrained(self) -> None:
        """Write the trained folder: see ``Checkpointer.save_pretrained``."""
        best_step = self._step_of_model
        if best_step:
            note(f"the trained model is checkpoint-{best_step}, the best")
        self.checkpointer.save_pretrained(self.train_state, self.run_metadata, best_step=best_step)

    def end_table(self, output: Path) -> list[str]:
        """Return the lines of what the run took and reached, its model being in a folder."""
        return list(end_table(self.state, self.plan, output, best_step=self._step_of_model))

    @property
    def _step_of_model(self) -> int:
        """The step of the best checkpoint, where the model is that one; 0: the last step's."""
        state = self.state
        return state.best_step if self.best.keeps_best and state.best_step != state.step else 0

    def _say_how_to_resume(self, stop: signal.Signals) -> None:
        step, total = self.state.step, self.plan.total_steps
        resumable = (
            "without the optimizer's state (--save-only-model): it cannot be resumed"
            if self.checkpointer.saves_only_model
            else "the same command resumes from there"
        )
        note(
            f"{stop.name}: stopped after step {step} of {total}, saved as checkpoint-{step}; "
            + resumable
        )

    def _take_steps(self) -> signal.Signals | None:
        plan, state = self.plan, self.state
        start, before = time.perf_counter(), state.seconds
        self.checkpointer.protected = self.best.protected(state)
        if stop := self._evaluate_if_due():
            return stop  # nothing is new since the checkpoint
        if state.stopped_early:
            return None
        rows = map(self.sampler.rows_of, range(state.step, plan.total_steps))
        self.meter.resume()
        last: PendingStep | None = None
        stop = None
        with self.loader.ahead(rows) as feeds:
            for step, feed in enumerate(feeds, state.step + 1):
                self.callback.on_step_begin(step)
                launched = self.step.launch(feed, step)
                asked = self._finish(last).stop if last is not None else None
                if self.step.late and not asked and not self._is_anything_due(step):
                    last = launched
                    continue
                last, result = None, self._finish(launched)
                if plan.due(plan.logging, step):
                    self._log(result)
                state.evaluation_is_due = plan.due(plan.evaluation, step)
                unfinished = step < plan.total_steps or state.evaluation_is_due
                stop = (asked or result.stop) if unfinished else None
                best_before = state.best_step
                stop = stop or self._evaluate_if_due()
                found_best = self.best.keeps_best and state.best_step != best_before
                state.seconds = before + time.perf_counter() - start
                if plan.due(plan.saving, step) or stop or found_best or state.stopped_early:
                    self.checkpointer.save(self.train_state)
                    self.callback.on_save(step)
                if stop or state.stopped_early:
                    break
                self.meter.resume()
        state.seconds = before + time.perf_counter() - start
        return stop

    def _is_anything_due(self, step: int) -> bool:
        """Return whether something follows the step that must know what it found out."""
        plan = self.plan
        due = any(plan.due(each, step) for each in (plan.logging, plan.evaluation, plan.saving))
        return due or step == plan.total_steps

    def _finish(self, pending: PendingStep) -> StepResult:
        """Wait for a step that was launched, and take in what it found out."""
        result = pending.result()
        self._count(pending.feed, result)
        self.callback.on_step_end(pending.step, result)
        self.checkpointer.check()
        loss = result.loss / max(result.tokens, 1)
        self.reporter.step_done(pending.step, loss, result.learning_rate)
        return result

    def _evaluate_if_due(self) -> signal.Signals | None:
        """Evaluate; of a run that is asked to stop meanwhile, the resumed one does it."""
        if not (self.state.evaluation_is_due and self.plan.evaluation):
            return None
        values: dict[str, float] = {}
        for evaluator in self.evaluators:
            found = evaluator.run(self.model, self._asked_to_stop)
            if isinstance(found, signal.Signals):
                return found
            values |= found
        samples: list[Sample] = []
        for each in self.samples:
            answered = each.answer(self.model, self._asked_to_stop)
            if isinstance(answered, signal.Signals):
                return answered
            samples += answered
        self.state.evaluation_is_due = False
        self._enter(values)
        self.reporter.samples(samples, self.state.step)
        self.best.update(self.state, values)
        self.checkpointer.protected = self.best.protected(self.state)
        if self.state.stopped_early:
            note(
                f"early stopping after step {self.state.step} of {self.plan.total_steps}: "
                f"no improvement in {self.state.evaluations_without_gain} evaluations"
            )
        return None

    def _asked_to_stop(self) -> signal.Signals | None:
        self.callback.on_prediction_step()
        return self.stop.agreed(self.hosts)

    def _log_summary(self) -> None:
        state = self.state
        seconds = max(state.seconds, 1e-9)
        self._enter(
            {
                "train_runtime": state.seconds,
                "train_samples_per_second": state.rows_seen / seconds,
                "train_steps_per_second": state.step / seconds,
                "train_loss": state.whole.mean(),
            }
        )

    def _count(self, feed: StepBatch, result: StepResult) -> None:
        state = self.state
        state.step += 1
        state.rows_seen += len(feed.rows)
        state.tokens_seen += feed.encoder_tokens + result.tokens
        for sums in (state.window, state.whole):
            sums.add(result.loss, result.tokens)
        self.meter.step(
            target_tokens=result.tokens,
            useful_flops=feed.useful_flops,
            padded_flops=feed.padded_flops,
            waited=self.loader.waited,
        )

    def _log(self, result: StepResult) -> None:
        """Enter what is known of the steps since the last entry; ``loss`` by target tokens."""
        self._enter(
            {
                "loss": self.state.window.mean(),
                "grad_norm": result.grad_norm,
                "learning_rate": result.learning_rate,
            }
            | self.meter.read(self.state.step)
        )
        self.state.window = Sums()

    def _enter(self, values: dict[str, float]) -> None:
        state = self.state
        entry = values | {"epoch": self.plan.epoch_at(state.step), "step": state.step}
        state.log.append(entry)
        self.reporter.entry(entry)
