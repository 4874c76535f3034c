#!/usr/bin/env bash
# A new object for the shapes teacher and its student, from five pictures: trained, sampled and scored.
#
#   launch/dreambooth.sh WORKDIR
#
# Six rows: the teacher, by DreamBooth (full) and with a LoRA; a distilled student, with a LoRA of its own and with the
# teacher's, converted. Each makes 160 images of hearts where the pictures have none, and 256 of other shapes. If it is
# interrupted, the same command continues.
set -euo pipefail
work=${1:?WORKDIR: the folder for all output}
rows=(teacher full lora student student_lora converted)
student=$work/student/model
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$work/.compiled}

train() { python -m launch.train "$@"; }

# images and scores of a row: ROW PROMPTS IMAGES_PER_PROMPT
scored() {
  local model=shapes_teacher lora=''
  case $1 in
    full) model=$work/full/model ;;
    lora) lora="'$work/lora/lora.safetensors'," ;;
    student) model=$student ;;
    student_lora) model=$student lora="'$work/student_lora/lora.safetensors'," ;;
    converted) model=$student lora="'$work/converted'," ;;
  esac
  python -m launch.sample --config=configs/sample.py --config.model="$model" --config.lora="($lora)" \
    --config.prompts="$work/$2.txt" --config.images_per_prompt="$3" --config.batch_size=32 \
    --config.sampler=pndm --config.steps=12 --config.guidance_scale=1.5 --workdir="$work/$2/$1"
  python -m launch.score --config=configs/score.py:shapes --config.metrics="('attribute_accuracy',)" \
    --config.images="$work/$2/$1" --workdir="$work/$2/scores_$1"
}

mkdir -p "$work"
train --config=configs/distill.py:shapes,bk_small --config.sheets.steps=0 --workdir="$work/student"
train --config=configs/dreambooth.py:shapes --workdir="$work/full"
train --config=configs/lora.py:shapes --workdir="$work/lora"
train --config=configs/lora.py:shapes --config.model="$student" --workdir="$work/student_lora"
if [ ! -e "$work/converted" ]; then
  python -m launch.convert_lora --config=configs/convert_lora.py --config.lora="$work/lora/lora.safetensors" \
    --config.model="$student" --workdir="$work/converted"
fi
python -c "from bksdm_jax.shapes.hearts import prompts
print(*prompts('heldout'), sep='\n')" > "$work/hearts.txt"
python -c "from bksdm_jax.shapes.world import example
for i in range(256): print(example('heldout', i)[1])" > "$work/shapes.txt"
for prompts in hearts shapes; do
  list='' labels=''
  for row in "${rows[@]}"; do
    scored "$row" "$prompts" "$([ $prompts = hearts ] && echo 16 || echo 1)"
    list+="'$work/$prompts/scores_$row'," labels+="'$row',"
  done
  python -m launch.report --config=configs/report.py --config.published=no --config.scores="($list)" \
    --config.labels="($labels)" --workdir="$work/$prompts/report"
done
