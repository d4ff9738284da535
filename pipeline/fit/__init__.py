"""The second stage: a prepared folder and a model in, a trained folder out.

``fit(config)`` runs it. In reading order:

    dataset.py     manifest, shards -> memory-mapped rows
    plan.py        settings, rows -> what happens at which step
    collate.py     rows -> a padded batch of tensors
    flops.py       config -> the operations that a row of given lengths takes
    grouping.py    rows -> the same rows, those of like length next to each other
    batching.py    (lengths, seed, epoch) -> the rows of each step
    micro_batches.py   rows of a step -> micro-batches, dealt to processes
    feeding.py     rows of each step -> padded batches, made ahead on a GPU
    vocabulary.py  a model's files -> the ids of its own tokens
    embedding.py   rows of the embedding for new tokens
    lora.py        a model -> the same, frozen, with an adapter to train
    quantizing.py  --quantize: an adapter's frozen layers in four bits
    model.py       name or folder -> the model, ready to train
    attention.py   T5's attention with one bias a stack
    cpu_attention.py  attention on a CPU, a few heads at a time
    layers.py      norms and activations in one operation each
    compiling.py   --torch-compile: layers in a handful of graphs
    sharding.py    --fsdp: a model, its gradients and averages in shares
    launcher.py    accelerate's config -> --fsdp
    loss.py        a batch -> summed token loss, its logits a chunk at a time
    optim.py       settings -> optimizer and schedule
    memory.py      settings, model -> the bytes that training takes
    batch_size.py  --auto-batch-size: how many rows fit
    probe.py       micro-batches before the first step: what fits, and how gradients are bucketed
    evaluate.py    split eval -> eval_loss, eval_bits_per_byte
    state.py       what a run has done so far; trainer_state.json
    rng.py         the state of the random number generators
    trained.py     the model as a folder in Hugging Face's layout
    snapshot.py    a copy of what training changes, whole, in main memory
    checkpoint.py  write, find, resume checkpoints
    background.py  one piece of work at a time in a thread
    saving.py      checkpoints while the steps go on, the trained folder at the end
    metrics.py     what a run costs: tokens a second, share of peak, padding, waiting, memory
    report.py      what a run says: terminal, log, trackers
    loop.py        the optimizer steps
    padding.py     what steps cost as they are cut
    dry_run.py     --dry-run: a run's steps, padding, memory and time as a table
    setup.py       settings -> data, processes, plan, output folder
    facts.py       run.json: what a run was made of
    resuming.py    where a run stands
    run.py         one sitting of a run, from the model to the trained folder
    stage.py       all of it
"""

from pipeline.callable_module import make_callable

make_callable(__name__)
