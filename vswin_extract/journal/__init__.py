"""The journal of a run: it keeps finished videos on the disk, so that a kill loses only the videos in flight.

In come the rows of videos, as the workers finish them; out comes the output file. A worker's process makes a
`JournalWriter` (writer.py) and gives it the rows of each video as a `Part` (parts.py). The process that started the
run holds the `Journal` (journal.py): it reads what all writers have finished (entries.py), says what is missing, and
publishes the output. `merge` (merge.py) makes one output of several journals and outputs (sources.py). directory.py
makes, locks and removes the directory itself; claims.py locks the output, so that only one process makes it; stored.py
checks what the .json files say:

    out.h5.parts/
      job.json               the settings of the run, its id, and what else the output will say
      videos.json            the ids of the videos, and about how many clips each has
      lock                   the host and the process of a run that works alone
      frames/                the frame tables of videos, which decoders make and share: <hash of path and file>.npz
      shard-<id>/            the files of one process; no other process ever writes into it
        lock                 the host and the process, while it lives; nobody removes such a directory
        <key>.rows           the rows of a video, or of a clip range of one; <key> is a hash of id and clip range
        <key>.json           the record of that video, and the sha256 of its .rows file
        pack-<n>.rows, .json the same of several hundred videos, so that there are never too many files
        *.tmp                unfinished files, worthless after a kill

A video is finished when a .json file says so. That file is written last. If its .rows file is missing or has another
sha256, the video is extracted again. An entry of a whole video counts more than those of its clip ranges. An entry with
the error FrameTableWrong says that only the whole video counts. Earlier versions wrote the files of a shard directory
into the journal directory itself, or into branch-<id>/; they are still read.
"""
