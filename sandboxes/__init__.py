"""Where actions land: the sandboxes that run programs nobody has read yet.

`sandbox.py` holds the records, the protocol and `open_sandbox`; `local_sandbox.py` runs programs in warm worker
processes on this machine; `worker.py` and `confinement.py` are what runs inside such a worker, standard library only,
so that the same two files can be mounted in a container; `conformance.py` is the proof that every backend must pass.

    from kintsugi.sandboxes.sandbox import open_sandbox

    with open_sandbox() as sandbox:
        print(sandbox.run("print(6 * 7)").stdout)

Leaves out: what a program's result means. That is the environments' business.
"""
