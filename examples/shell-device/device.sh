#!/usr/bin/env bash
# A device of a fleetfold fleet in bash: device.sh BUNDLE [FOLDER]. It trains nothing: its update of each round is the
# model as it came, of one example. What it speaks is told in docs/protocol.md, how it is run in README.md.
set -u -o pipefail; umask 077; export LC_ALL=C
bundle=$(realpath -- "${1:?usage: device.sh BUNDLE [FOLDER]}") home=${2:-$HOME/.shell-device}
if ! { mkdir -p "$home" && cd "$home" && exec 9>lock && flock -n 9; }; then echo "$home is in use" >&2; exit 2; fi
for part in authority certificate key; do jq -er ".$part" "$bundle" >"$part.pem" || exit 2; done
device=$(jq -r .device "$bundle") topic=fleetfold/$(jq -r .fleet "$bundle")/$device
broker=$(jq -r 'first(.brokers[] | select(startswith("mqtts://")))[8:]' "$bundle")
mqtt=(-V mqttv5 -h "${broker%:*}" -p "${broker##*:}" --cafile authority.pem --cert certificate.pem --key key.pem
  -i "$device" -c -x 3600 -q 1) heard=(-t "$topic/task" -t "$topic/grant" -t "$topic/command")
curl=(curl -sS --proto '=https' --cacert authority.pem --cert certificate.pem --key key.pem --connect-timeout 10
  --speed-time 60 --speed-limit 1 -w '%{http_code}')
task='' grant='' commands=() open='' own='' # what was heard last; whether we listen, and again by our own doing
news='' told='' doubt='' # presence is due; the answer was told; since when the broker may have no task for us
pause() { sleep $((RANDOM % (1 << ($1 < 6 ? $1 : 6)) + 1)); }
name() { jq -r '"\(.run) \(.round) \(.kind)"' <<<"$1"; }
presence() { jq -nc --arg device "$device" "{v: 1, \$device, online: $1, agent: \"shell-device 1\"}"; }
listen() { # two connections of one device take each other's place: mosquitto_pub's lasts a moment, this one comes back
  open='' own='' && exec 3< <(exec 9>&- stdbuf -oL mosquitto_sub "${mqtt[@]}" "${heard[@]}" -F %j -d --will-qos 1 \
    --will-retain --will-topic "$topic/presence" --will-payload "$(presence false)" 2>&1) && listener=$!
}
hear() { # SECONDS: one line of the listener's. 1: it has ended, more: nothing came
  local line found; IFS= read -r -t "$1" line <&3 || return
  case $line in
  *' received SUBACK') open=yes doubt=$SECONDS; [[ $own ]] || news=yes told=''; own='' ;;
  '{'*)
    mapfile -t found < <(jq -rc --arg device "$device" '.topic, .retain, (.payload | if . == null then "" else
      fromjson | if type == "object" and .v == 1 and .device == $device then . else error end end)' <<<"$line" 2>&-)
    ((${#found[@]} == 3)) || return 0 # nothing that is meant for us
    case ${found[0]} in
    "$topic/task") task=${found[2]} doubt=''; ((found[1])) || told='' ;;
    "$topic/grant") grant=${found[2]} ;;
    "$topic/command") commands+=(${found[2]:+"${found[2]}"}) ;; esac ;;
  *rror:*) echo "$line" >&2 ;; esac
}
say() { # WORD JSON [OPTION...]: not before the listener is back, or what comes for it is lost
  until [[ $open ]]; do hear 60 || return; done
  mosquitto_pub "${mqtt[@]}" -t "$topic/$1" -m "$2" "${@:3}" && open='' own=yes
}
wanted() { # whether the task in hand still is, after all that was heard
  while read -r -t 0 <&3; do hear 1 || break; done
  [[ ! $doubt ]] || ((SECONDS - doubt < 5)) || task='' doubt='' # connected, and the broker keeps none for us
  [[ $task && $(name "$task") == "$id" ]]
}
of() { jq -rc "$1" <<<"$mine"; }
report() { jq -c --arg state "$1" --arg reason "${2:-}" '{v, run, round, kind, device, $state, $reason}' <<<"$mine"; }
settle() { # STATE [REASON]: the answer is kept before it is told, and the update forgotten
  echo "$id: $*" >&2 && report "$@" >answer.new && mv answer.new answer && rm -f update
  say status "$(<answer)" && told=yes
}
fresh() { # addresses that are good again; asked for anew after a while, since an answer may be lost
  local n; grant=''
  for ((n = 0; ; n++)); do
    ((n % 4)) || say ask "$(of '{v, run, round, kind, device, parts: 0, first: 0}')" || return
    if hear 1; [[ $(name "$grant") == "$id" ]]; then break; else wanted || return; fi
  done
  [[ ! $(jq -r .reason <<<"$grant") ]] || { settle refused "$(jq -r .reason <<<"$grant")"; return 1; }
  mine=$(jq -c --argjson got "$grant" '. + {model: $got.model, update: $got.updates[0]}' <<<"$mine")
}
fetch() { # the model, checked; gone on with where it broke off
  local n code wrong='' part; part=$(of .digest).part; [[ -f $part ]] || rm -f ./*.part
  for ((n = 1; ; n++)); do wanted || return
    code=$("${curl[@]}" -f -C - --max-filesize "$(of .size)" -o "$part" "$(of .model)" 2>&-)
    if [[ $code == 403 || $code == 410 ]]; then fresh || return
    elif (($(stat -c %s "$part" 2>&- || echo 0) < $(of .size))); then pause "$n"
    elif [[ $(sha256sum <"$part") == "$(of .digest)  -" ]]; then mv "$part" model; return
    elif [[ ! $wrong ]]; then rm -f "$part"; wrong=yes
    else settle refused 'what was fetched is not the model that was named'; return 1; fi
  done
}
make() { # the update: the model's own tensors, floats first, under a header that says whose it is
  local length table n start size; length=$(od -An -v -tu8 -N8 --endian=little model | tr -d ' ')
  tail -c +9 model | head -c "$length" | jq -c '[to_entries[] | select(.key != "__metadata__")]
    | sort_by(.value.data_offsets) | group_by(.value.dtype | test("F") | not) | add // []' >tensors
  table=$(jq -c --arg header "$(jq -c '{v, run, round, kind, device, examples: 1}' <<<"$mine")" '
    reduce .[] as {$key, $value} ({at: 0, out: {__metadata__: {fleetfold: $header}}};
      ($value.data_offsets | .[1] - .[0]) as $size | .out[$key] = $value + {data_offsets: [.at, .at + $size]}
      | .at += $size) | .out' tensors) && while (((8 + ${#table}) % 64)); do table+=' '; done
  { for n in {0..7}; do printf '%b' "\\x$(printf %02x $((${#table} >> 8 * n & 255)))"; done && printf %s "$table"
    jq -r '.[].value.data_offsets | "\(.[0]) \(.[1] - .[0])"' tensors | while read -r start size; do
      tail -c +$((8 + length + start + 1)) model | head -c "$size"; done; } >update.new && mv update.new update
}
deliver() { # until it lies at the door; 409: what lies there stands
  local n code digest; digest=$(openssl dgst -sha256 -binary update | base64)
  for ((n = 1; ; n++)); do wanted || return
    code=$("${curl[@]}" -T update -H "Content-Digest: sha-256=:$digest:" -o reply "$(of .update)" 2>&-)
    case $code in
    200 | 201 | 409) settle delivered; return ;;
    403 | 410) fresh || return ;;
    000 | 408 | 429 | 5??) pause "$n" ;;
    *) settle failed "the door answers $code: $(head -c 200 reply)"; return ;;
    esac
  done
}
work() { # the task that was heard; what was begun before a restart is finished
  local why; mine=$task id=$(name "$task")
  why=$(of 'if .kind != "train" then "this device only trains" elif .size > 33554432 then
    "this device sends no parts" elif .digest | test("^[0-9a-f]{64}$") | not then "there is no such digest"
    elif (.form.codec // "full") != "full" or .form.delta or (.form.carried // "") != "" then
    "this device sends whole models alone, not \(.form)" else "" end')
  [[ ! $why ]] || { settle refused "$why"; return; }
  [[ $(cat begun 2>&-) == "$id" ]] || { rm -f update && echo "$id" >begun; }
  say status "$(report accepted)" && { [[ -f update ]] || { fetch && make; }; } && deliver
}
refusal() { jq -c '{v, id, device, state: "refused", reason: "this device does tasks alone"}' <<<"$1"; }
leave() { kill "$listener"; mosquitto_pub "${mqtt[@]}" -t "$topic/presence" -r -m "$(presence false)"; }
trap leave EXIT && trap exit TERM INT
for ((lost = 1; ; lost++)); do listen
  while hear 5 || (($? > 128)); do
    [[ ! $open || ! $news ]] || { lost=0; say presence "$(presence true)" -r && news=''; }
    while ((${#commands[@]})) && say answer "$(refusal "${commands[0]}")" -D publish correlation-data \
      "$(jq -r .id <<<"${commands[0]}")"; do commands=("${commands[@]:1}"); done
    if [[ ! $task ]]; then continue
    elif [[ $(name "$(cat answer 2>&-)") != "$(name "$task")" ]]; then work
    elif [[ ! $told ]]; then say status "$(<answer)" && told=yes; fi
  done; pause "$lost"
done
