"""The second stage: a prepared folder and a model in, a trained folder out. ``fit(config)`` runs it.

    dataset.py     manifest, shards -> memory-mapped rows
    batching.py    (rows, seed, epoch) -> the rows of each step, cut into micro-batches
    collate.py     rows -> a padded batch of tensors
    embedding.py   rows of the embedding for new pieces
    model.py       name or folder -> the model, ready to train
    loss.py        logits, labels -> summed token loss
    optim.py       optimizer and schedule
    evaluate.py    split eval -> eval_loss, eval_bits_per_byte
    checkpoint.py  write, find, resume checkpoints; the trained folder
    loop.py        the optimizer steps
    stage.py       all of it
"""

from pipeline.callable_module import make_callable

make_callable(__name__)
