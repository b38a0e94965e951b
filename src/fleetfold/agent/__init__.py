"""What runs on a device: task → fetch the model → train → deliver the update → report.

trainer         what the user writes: the Trainer protocol over named arrays
torch_trainer   the same from four plain functions of PyTorch
proximal        FedProx's term, for torch optimizers: training that stays near the global model
app             finds the user's trainer in a folder, a file or a module
journal         what was promised, and what was done; survives a power cut
loop            the agent itself
"""
