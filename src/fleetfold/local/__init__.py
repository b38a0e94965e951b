"""A fleet on one machine: the coordinator in this process, the devices in worker processes.

    run      opens or resumes a run, and drives it to its end
    devices  who they are, and which share of the data each holds
    workers  starts the workers, hears their hints, starts them again when they die
    worker   what runs in one of them: the real agent, for its share of the devices

The truth lies in the run's folder; what goes through the sockets are hints that it is worth a look.
"""
