"""How a run is set up, kept safe, watched and shown. `train.py` tells the story; the parts, in its order:

    cli.py, settings.py   from words on a command line to settings
    errors.py             what the user must mend, in one line
    run.py                the run folder: opened, resumed, loaded for writing
    trainer.py            model, optimizer and logs, and what is done to them
    loop.py               how an update, an evaluation and a sample compute
    checkpoint.py         complete or absent
    metrics.py            losses to the last bit
    layers.py             how large gradients and updates are, layer by layer
    screen.py, report/    what a person sees, on the screen and on a page
    signals.py            stopping
"""
