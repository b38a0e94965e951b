"""A round is a value. `decide(round, event, now)` is the only thing that changes it.

    Opened ──▶ OPEN ──▶ FOLDING ──▶ DONE          state    what a round is
                 └────────┴──▶ FAILED             events   what happens to it, what must be done
                                                  decide   the table of transitions
Pure: no I/O, no clock, no chance, no log.        select   who is invited
                                                  fleet    what is known of each device
                                                  run      what comes after a round
"""
