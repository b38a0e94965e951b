"""`fleetfold dashboard`: one page on a run, read from its ledger wherever that is.

    ledger ─▶ watch (one thread a run, at its own pace) ─▶ feed (what changed since) ─▶ serve ⇄ page/
                                        control: pause, stop, resume, start ◀─ behind a token ─┘

Nothing here is told to the run but by a wish in its record; who only reads needs no token.
"""
