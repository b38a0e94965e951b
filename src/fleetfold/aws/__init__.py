"""fleetfold on AWS: nothing runs between rounds. One stack, six functions, one state machine.

S3 ─▶ queue ─▶ collect ─┐                            ┌─▶ fold_shard × n ─▶ publish ─┐
IoT ─▶ queue ─▶ status ─┼─▶ round closed ─▶ workflow ┤                              ├─▶ next round
Scheduler ─▶ tick ──────┘                            └──────────◀── initiate ◀──────┘
"""
