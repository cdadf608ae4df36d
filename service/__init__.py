"""Compression as a service: images and a device's limits in, a subnet with its proof out, over HTTP.

A job is a folder, and all that it does is commands of this framework in that folder (`service.stages`), which a worker
process of its own runs one after another (`service.worker`). The server (`service.app`) validates, writes the folder,
starts and watches the worker (`service.dispatcher`), and serves what is there. `supernet serve` starts it.
"""
