"""The second stage: a prepared folder and a model in, a trained folder out.

``fit(config)`` runs it; ``stage.py`` tells it in one page. The rooms, in the order of the data:

    data/          manifest, shards -> examples -> those of a step -> micro-batches on a device
    model/         a name or folder -> the model, ready to train: rows for new tokens, LoRA,
                   fused layers, the loss
    distributed/   the processes of a run: joined, sharded, stopped, waited for
    checkpoint/    what a run writes, and how it resumes from it
    estimate/      what a run takes before it is paid for: steps, padding, memory
    training/      build.py makes the trainer; trainer.py takes the steps; step.py is one of them

and beside them ``context.py`` (what a run is made of), ``schedule.py`` (what happens at which
step), ``flops.py`` (what a row costs) and ``device.py`` (what is set once on a device).
"""

from pipeline.callable_module import make_callable

make_callable(__name__)
