"""Where actions land: the sandboxes that run programs nobody has read yet.

`sandbox.py` holds the records, the protocol and `open_sandbox`; `docker_sandbox.py` and `local_sandbox.py` are the
backends, `worker_pool.py` what they share. `worker.py` is what runs inside, with the files that travel with it
(`boot.TRAVELLERS`, standard library only): `child.py` runs a program, `judging.py` its tests in a process of
their own, `confinement.py` and `namespaces.py` take rights away, `watching.py` and `holdings.py` hold the limits,
`tidying.py` makes ready for the next program. `conformance.py` and `battery.py` are the proofs that every backend must
pass. `docs/sandboxes.md` says what holds where.

    from kintsugi.sandboxes.sandbox import open_sandbox

    with open_sandbox() as sandbox:
        print(sandbox.run("print(6 * 7)").stdout)

Leaves out: what a program's result means. That is the environments' business.
"""
