#!/usr/bin/env bash
# The verb `keep` of launch/tpu_pod.sh, which reads this file and describes the verb.
[ "${BASH_SOURCE[0]}" != "$0" ] || {
  echo "error: part of launch/tpu_pod.sh; launch/tpu_pod.sh keep NAME TYPE COMMAND" >&2
  exit 1
}

TRIES=5
progress_text='' progress_at=0 failures=0
: "${temporary:?}" # of the script that reads this one
seen='' # whether gcloud has answered and a slice was active before

tell() {
  echo "$(date +%H:%M:%S) $NAME: $*"
}

progress() { # TEXT: when it is new, or a minute has passed
  if [ "$1" != "$progress_text" ] || [ $((SECONDS - progress_at)) -ge 60 ]; then
    tell "$1"
    progress_text=$1 progress_at=$SECONDS
  fi
}

again() { # WHAT: after a failure of gcloud; gives up after TRIES of them in a row
  failures=$((failures + 1))
  [ "$failures" -lt "$TRIES" ] || fail "$1 failed $TRIES times; the slice, if there is one, is left as it is"
  tell "$1 failed; trying again"
  sleep "$PAUSE"
}

obtain() { # TYPE RUNTIME: returns when the slice is active; empties `installed` where it is a new one
  local now requested=''
  failures=0
  while :; do
    now=$(state)
    case $now in
      ACTIVE) return ;;
      none)
        tell "requesting a slice of type $1"
        installed=''
        if queue "$1" "$2"; then requested=1 failures=0; else again "requesting the slice"; fi
        ;;
      FAILED | SUSPENDED | PREEMPTED)
        if [ "$now" = FAILED ] && [ -n "$requested" ]; then
          queued describe "$NAME" >&2 || true
          remove --quiet || true
          fail "the request has failed${VALID_UNTIL:+, or was not served within $VALID_UNTIL}"
        fi
        tell "the slice is $now: deleting what is left of it"
        if remove --quiet; then failures=0; else again "deleting the slice"; fi
        ;;
      unknown)
        if [ -z "$seen$requested" ]; then
          cat "$temporary/error" >&2
          again "asking for the state of the slice"
        else # this machine may have been offline for a while
          progress "gcloud doesn't say the state of the slice"
          sleep "$POLL"
        fi
        ;;
      *)
        requested=1
        progress "waiting for the slice: $now"
        sleep "$POLL"
        ;;
    esac
  done
}

attempt() { # WHAT COMMAND: until it succeeds; 1: the slice is gone
  local what=$1
  shift
  failures=0
  until "$@"; do
    case $(state) in
      ACTIVE | unknown) again "$what" ;;
      *) return 1 ;;
    esac
  done
}

look() { # COMMAND: sets `said` to a line `status STATUS` of every worker, and the end of the log of those that failed
  local command quoted
  printf -v command '%q ' "$@"
  printf -v quoted '%q' "$command"
  said=$(on_workers all "status=lost; if cd $FOLDER 2>/dev/null; then if $ALIVE; then status=running; \
was=\$(cat run.command 2>/dev/null); [ \"\$was\" = $quoted ] || status=other; [ -n \"\$was\" ] || status=lost; \
else status=\$(cat run.status 2>/dev/null || echo lost); fi; fi; \
case \$status in 0 | 75 | 130 | 137 | 143 | running | other | lost) ;; \
*) tail -n 20 run.log | sed \"s/^/\$(hostname): /\" ;; esac; echo \"status \$status\"" \
    2>"$temporary/error") && grep -q '^status ' <<<"$said"
}

statuses() { # of the last `look`: each once, between spaces
  echo " $(sed -n 's/^status //p' <<<"$said" | sort -u | tr '\n' ' ')"
}

has_failed() { # STATUSES
  local status
  for status in $1; do
    case $status in
      0 | 75 | 130 | 137 | 143 | running | other | lost) ;;
      *) return 0 ;;
    esac
  done
  return 1
}

end_the_rest() { # where others were interrupted
  tell "killing the workers that still run: others have ended"
  on_workers all "cd $FOLDER; if $ALIVE; then kill -KILL \$(cat run.pid); fi" || true
}

watch() { # COMMAND: sets `outcome` to done, again, lost or gone; ends the script where a worker has failed
  local all since='' since_when=''
  while :; do
    if ! look "$@"; then
      case $(state) in
        ACTIVE)
          progress "a worker doesn't answer"
          since_when=${since_when:-$SECONDS}
          if [ $((SECONDS - since_when)) -ge "$MUTE" ]; then
            tell "a worker hasn't answered for $MUTE s: deleting the slice, to request another one"
            remove --quiet || true
            outcome=gone
            return
          fi
          ;;
        unknown)
          progress "a worker doesn't answer"
          since_when=''
          ;;
        *) outcome=gone && return ;;
      esac
      sleep "$POLL"
      continue
    fi
    since_when=''
    all=$(statuses)
    if has_failed "$all"; then
      # What is left of a slice that is being taken away fails in many ways.
      case $(state) in ACTIVE | unknown) ;; *) outcome=gone && return ;; esac
      grep -v '^status ' <<<"$said" >&2 || true
      fail "the workers' statuses are$all; the slice is still there: \`delete $NAME\`"
    fi
    case $all in
      ' 0 ') outcome='done' && return ;;
      *' other '*) fail "another command is running on $NAME; \`stop\` it first" ;;
      *' running '*) progress "running" ;;
      *' lost '*) outcome=lost && return ;;
      *) outcome=again && return ;;
    esac
    if [[ $all =~ \ (75|130|137|143|lost)\  ]]; then
      since=${since:-$SECONDS}
      [ $((SECONDS - since)) -lt "$GRACE" ] || end_the_rest
    fi
    sleep "$POLL"
  done
}

keep() { # TYPE RUNTIME COMMAND
  local type=$1 runtime=$2 installed='' quick=0 began
  shift 2
  trap 'tell "no longer watched; the slice and what runs on it are left alone"; exit 130' INT
  trap 'tell "no longer watched; the slice and what runs on it are left alone"; exit 143' TERM HUP
  while :; do
    obtain "$type" "$runtime"
    attempt "connecting" look "$@" || continue
    seen=1
    case $(statuses) in
      *' running '* | *' other '*) ;; # `watch` goes on with the same command, and refuses another
      *)
        if [ -z "$installed" ]; then
          tell "installing"
          attempt "installing" install || continue
          installed=1
        fi
        tell "starting $(printf '%q ' "$@")"
        attempt "starting" start "$@" || continue
        ;;
    esac
    began=$SECONDS
    watch "$@"
    case $outcome in
      done)
        tell "done"
        if [ -n "${DELETE:-}" ]; then remove; else tell "the slice is still there: \`delete $NAME\`"; fi
        return
        ;;
      lost) installed='' ;;
    esac
    if [ "$outcome" != gone ]; then
      if [ $((SECONDS - began)) -lt "$SHORT" ]; then quick=$((quick + 1)); else quick=0; fi
      [ "$quick" -le 5 ] || fail "interrupted early $quick times in a row: \`logs $NAME\`; the slice is still there"
      tell "interrupted: starting it again"
      sleep "$PAUSE"
    fi
  done
}
