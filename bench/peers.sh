#!/bin/sh
# Other projects and ours over the same engine footage, side by side: cost, memory, clips, and what each computes.
#   sh bench/peers.sh FOLDER [--only ours,scenedetect,video2dataset,juicer,nemo] [--lines 480,720] [--again]
# Each project gets an environment of its own under FOLDER/env (6 GB in all), which is kept. One that cannot be installed is
# named in the table with the line that failed; to try it again, remove FOLDER/env/NAME. ffmpeg and ffprobe must be installed:
# apt-get install ffmpeg.
# PYTHON is the interpreter that has gamecraft with the extra `demo`, PEER_PYTHON (3.11 or 3.12) makes the environments.
cd "$(dirname "$0")/.." || exit
[ $# -gt 0 ] || { sed -n 2,3p bench/peers.sh >&2; exit 2; }
command -v ffmpeg > /dev/null && command -v ffprobe > /dev/null || { echo "ffmpeg or ffprobe is not installed" >&2; exit 2; }
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1
mkdir -p "$1/env" || exit

# environment NAME: make it, unless it is there. Fails where nothing is to be installed.
environment() {
    home="$target/env/$1"
    [ -e "$home/done" ] || [ -e "$home/failed" ] && return 1
    echo "installing $1 into $home" >&2
    "${PEER_PYTHON:-python3}" -m venv --clear "$home"
}

# install ARGUMENTS: one line of pip, unless a line before it failed.
install() {
    [ -e "$home/failed" ] && return
    "$home/bin/pip" install --quiet --disable-pip-version-check "$@" > "$home/install.log" 2>&1 || {
        echo "pip install $*: $(grep ERROR "$home/install.log" | tail -n 1)" > "$home/failed"
        cat "$home/failed" >&2
    }
}

finish() { [ -e "$home/failed" ] || touch "$home/done"; }

target="$1"
# torch comes first and by version, so that no later line brings another build.
if environment scenedetect; then
    install scenedetect==0.7.2 opencv-python-headless
    finish
fi
if environment nemo; then
    install torch==2.13.0
    install torchvision==0.28.0 'nemo-curator[video-cpu]==1.4.0' opencv-python-headless
    finish
fi
# Data-Juicer installs what an operator misses while it runs; all of it is named here, so that this is not measured.
if environment juicer; then
    install torch==2.13.0
    install py-data-juicer==1.6.1 scenedetect==0.7.2 av==13.1.0 opencv-contrib-python-headless 'ray[default]==2.60.0'
    finish
fi
# Its metadata pin a torch of 2023, and torchaudio and bitsandbytes are imported or listed for stages that do not run here.
if environment video2dataset; then
    install torch==2.13.0
    install --no-deps video2dataset==1.3.0 torchdata==0.7.1
    install 'numpy<2' scenedetect==0.6.2 'opencv-python-headless<4.12' 'pandas<3' 'pyarrow<21' 'fire<0.6' \
        requests ffmpeg-python yt-dlp fsspec webdataset webvtt-py wandb tqdm timeout-decorator decord langdetect soundfile \
        omegaconf einops Pillow scipy transformers==4.37.1 accelerate
    site=$("$home/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    mkdir -p "$site/torchaudio" && touch "$site/torchaudio/__init__.py" "$site/torchaudio/functional.py"
    # torch raises another error than in 2023 where no process group is set up: without this each shard of its flow fails.
    sed -i 's/except RuntimeError:/except (RuntimeError, ValueError):/' "$site/video2dataset/dataloader/custom_wds.py"
    finish
fi
exec "${PYTHON:-python3}" -m bench.peers "$@"
