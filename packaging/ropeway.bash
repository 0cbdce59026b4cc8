# Completion of the ropeway program for bash. Part of ropeway; Apache-2.0.
_ropeway() {
  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} command='' i
  for ((i = 1; i < COMP_CWORD; i++)); do
    case ${COMP_WORDS[i]} in send | receive | inspect | watch | verify | doctor | bench) command=${COMP_WORDS[i]} && break ;; esac
  done
  case $before in
    --route)
      COMPREPLY=($(compgen -W 'automatic mapped staged host' -- "$word"))
      return ;;
    --device)
      COMPREPLY=($(compgen -W 'host cuda:0 cuda:1' -- "$word"))
      return ;;
    --socket | --out | --trace)
      COMPREPLY=($(compgen -f -- "$word"))
      return ;;
    --bucket | --size)
      COMPREPLY=($(compgen -W '64M 256M 1G' -- "$word"))
      return ;;
    --slots | --versions | --receivers | --wait | --name | --connect-limit | --repeats | --interval) return ;;
  esac
  local options=''
  case $command in
    '') options='send receive inspect watch verify doctor bench --help --version' ;;
    send) options='--socket --device --route --json --quiet --digest --no-digest --check --trace --versions --bucket --slots --receivers --wait --hold' ;;
    receive) options='--socket --device --route --json --quiet --digest --no-digest --check --trace --out --versions --name --connect-limit' ;;
    inspect) options='--json' ;;
    watch) options='--socket --interval --once --connect-limit --json' ;;
    verify) options='--socket --connect-limit --json' ;;
    doctor) options='--socket --trials --no-trials --json' ;;
    bench) options='--size --bucket --slots --repeats --json' ;;
  esac
  COMPREPLY=($(compgen -W "$options --help" -- "$word"))
  if [[ $word != -* && ($command == send || $command == inspect || $command == verify) ]]; then
    COMPREPLY+=($(compgen -f -- "$word"))
  fi
}
complete -o filenames -F _ropeway ropeway
