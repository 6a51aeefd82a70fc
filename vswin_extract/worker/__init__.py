"""One device at work: videos go in, their rows go into the journal, events come out.

A worker (worker.py) loads the model and follows the orders of the run (messages.py). Videos wait in a queue
(video_queue.py). A pipeline (pipeline.py) takes them through three stations: decoder slots read their clips in a fixed
order (decoder_slots.py), the computer computes features batch by batch (compute.py, device.py, and frame_ring.py for
CUDA), and the writer writes rows and records (writer.py). settings.py derives from a job what a worker needs: the
model, decoder tasks, datasets, and the settings that the output records. batch_size.py finds how many clips fit into
the memory of a GPU.
"""
