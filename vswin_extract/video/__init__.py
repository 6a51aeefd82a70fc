"""Video: from what the user names to the clips of each video. Nothing is decoded here, and nothing imports torch.

Paths, directories, manifests and addresses come in. `videos` makes them a list of `Video`, each with its id;
`file_kinds` knows files that cannot be videos, `remote` opens and describes files at addresses, `listing` lists those
below an address, within bounds, and `fetch` copies them into a bounded cache on this machine before they are decoded.
The room `decoding` then reads frames with their times. `sampling` says which frames make which clip, `rows` applies
that to frames as they arrive, `geometry` makes a frame the pixels that the network sees, and `ranges` computes with
parts of a video's clips, into which long videos are split. `estimate` says about how many clips a video has, and
`color` names how colors are coded.
"""
