{{- /* The pod of the Deployment and the DaemonSet. Takes {root, gpu}. */ -}}
{{- define "llm-headroom.pod" -}}
{{- $root := .root -}}
{{- with $root.Values -}}
metadata:
  labels:
    {{- include "llm-headroom.labels" $root | nindent 4 }}
    {{- with .podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "llm-headroom.serviceAccountName" $root }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- with .imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- if $.gpu }}
  {{- with .daemonset.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- if .daemonset.hostPID }}
  hostPID: true
  {{- end }}
  {{- end }}
  securityContext:
    {{- toYaml .podSecurityContext | nindent 4 }}
  containers:
    - name: llm-headroom
      image: {{ include "llm-headroom.image" $root }}
      imagePullPolicy: {{ .image.pullPolicy }}
      args: [run, --config, /etc/llm-headroom/config.yml, --no-discover, {{ ternary "--gpu" "--no-gpu" $.gpu }}]
      env:
        {{- if $.gpu }}
        - {name: NVIDIA_VISIBLE_DEVICES, value: {{ .daemonset.visibleDevices | quote }}}
        - {name: NVIDIA_DRIVER_CAPABILITIES, value: utility}
        {{- end }}
        - {name: LLM_HEADROOM_LISTEN, value: ":9836"}
        {{- if .webConfigSecret }}
        - {name: LLM_HEADROOM_WEB_CONFIG, value: /etc/llm-headroom-web/web.yml}
        {{- end }}
        {{- with .extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      ports:
        - {name: llm-headroom, containerPort: 9836}
      {{- include (ternary "llm-headroom.webConfigProbes" "llm-headroom.probes" (ne .webConfigSecret "")) $root | nindent 6 }}
      resources:
        {{- toYaml .resources | nindent 8 }}
      securityContext:
        {{- toYaml .securityContext | nindent 8 }}
      volumeMounts:
        - {name: config, mountPath: /etc/llm-headroom, readOnly: true}
        {{- if .webConfigSecret }}
        - {name: web-config, mountPath: /etc/llm-headroom-web, readOnly: true}
        {{- end }}
        {{- with .extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: config
      configMap: {name: {{ include "llm-headroom.fullname" $root }}}
    {{- with .webConfigSecret }}
    - name: web-config
      secret: {secretName: {{ . }}}
    {{- end }}
    {{- with .extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with (ternary (merge (deepCopy .nodeSelector) .daemonset.nodeSelector) .nodeSelector $.gpu) }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with (ternary (concat .tolerations .daemonset.tolerations) .tolerations $.gpu) }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}
{{- end -}}
