# Completion of orchestrator for bash.  The words come from the program itself.

_orchestrator()
{
	local word=${COMP_WORDS[COMP_CWORD]} i words=()

	for ((i = 1; i < COMP_CWORD; i++)); do
		case ${COMP_WORDS[i]} in
			-h | -p | -U | -d | --host | --port | --username | --dbname | --color)
				# "=" is a word of its own.
				[ "${COMP_WORDS[i + 1]}" = = ] && ((i++))
				((i++))
				;;
			-* | = | help) ;;
			*)
				words+=("${COMP_WORDS[i]}")
				# Only tasks has commands of its own.
				[ "${words[0]}" = tasks ] && [ ${#words[@]} -lt 2 ] || break
				;;
		esac
	done
	[[ $word != @* ]] || return 0
	mapfile -t COMPREPLY < <(compgen -W "$("${COMP_WORDS[0]}" help --words -- "${words[@]}" 2>/dev/null)" -- "$word")
	# An option that takes a value is not ended by a space.
	[[ ${#COMPREPLY[@]} -ne 1 || ${COMPREPLY[0]} != *= ]] || compopt -o nospace
}

complete -o default -F _orchestrator orchestrator
